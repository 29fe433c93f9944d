"""What a measurement depends on beside what it measures: the commit, the machine, the versions."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def circumstances() -> dict[str, Any]:
    """Return those of a measurement on this machine's processor."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "commit": commit(),
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


def gpu_circumstances() -> dict[str, Any]:
    """Return those of a measurement on this machine's GPUs."""
    import torch

    return {
        "commit": commit(),
        "gpu": torch.cuda.get_device_name(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit of the checkout, and whether it was changed; empty in a copy without its history."""
    return _said("git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty")


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
