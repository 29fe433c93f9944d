"""This machine, without importing torch."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tuneserve.hardware._machine import Gpu, Machine
from tuneserve.hardware._memory import available_memory
from tuneserve.hardware._table import gpu_reported

_AMD = Path("/dev/kfd")
_QUERY = ("--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
# Larger than the caches of a core, small enough for a quarter of a second.
_PROBE_BYTES = 64 << 20
_ROUNDS = 3


def has_nvidia_gpu() -> bool:
    """Return whether NVIDIA's driver is there and lists a GPU."""
    return b"GPU" in _nvidia_smi("--list-gpus")


def detect_machine() -> Machine:
    """Return this machine: its NVIDIA GPUs if it has any, else its processor."""
    found = nvidia_gpus()
    machine = this_processor()
    if found:
        smallest = min(found, key=lambda gpu: gpu.memory)
        notes = () if len({gpu.name for gpu in found}) == 1 else ("its GPUs differ; all are taken for the smallest",)
        name = smallest.name if len(found) == 1 else f"{len(found)}x{smallest.name}"
        return replace(machine, name=name, kind="nvidia", gpus=(smallest,) * len(found), notes=notes)
    if _AMD.exists():
        note = "it has an AMD GPU, which is left out: tuneserve does not run on ROCm"
        return replace(machine, notes=(*machine.notes, note))
    return machine


def this_processor() -> Machine:
    """Return this machine without its GPUs; reading its memory for a moment tells the bandwidth."""
    cores = len(os.sched_getaffinity(0))
    return Machine(
        name=f"cpu-{cores}c",
        kind="cpu",
        cores=cores,
        memory=available_memory(),
        bandwidth=read_bandwidth(cores),
        notes=("its memory is what is free now, and its bandwidth was measured by reading it",),
    )


def read_bandwidth(threads: int) -> float:
    """Return the bytes per second that so many threads read from memory together, the best of a few rounds."""
    import numpy as np

    blocks = [np.ones(_PROBE_BYTES // 4, dtype=np.float32) for _ in range(min(threads, 16))]
    best = float("inf")
    with ThreadPoolExecutor(len(blocks)) as pool:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            list(pool.map(np.linalg.norm, blocks))
            best = min(best, time.perf_counter() - start)
    return len(blocks) * _PROBE_BYTES / best


def nvidia_gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs of this machine."""
    found = []
    for line in _nvidia_smi(*_QUERY).decode(errors="replace").splitlines():
        name, _, rest = line.partition(",")
        try:
            mebibytes, capability = (float(part) for part in rest.split(","))
        except ValueError:
            continue
        known = gpu_reported(name.strip())
        major, minor = divmod(round(capability * 10), 10)
        found.append(
            Gpu(
                name=known.name if known else name.strip(),
                memory=int(mebibytes) << 20,
                bandwidth=known.bandwidth if known else None,
                capability=(major, minor),
            )
        )
    return found


def _nvidia_smi(*arguments: str) -> bytes:
    try:
        return subprocess.run(["nvidia-smi", *arguments], capture_output=True, timeout=30, check=True).stdout  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError):
        return b""
