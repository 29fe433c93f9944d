"""Our merge and PEFT's beside a plain copy of the base's files, on the same disk in one run: wall time, peak memory.

Each runs in a process of its own, several times, the copy and our merge in turn. Imports are not counted; hashing of
what is read and written is, and so is waiting until it is on the disk. With ``--cold`` the page cache is emptied before
each (as root), so that the base comes from the disk; else it lies in memory. Appends to ``compare.jsonl``.

    python benchmarks/export/compare.py llama-3.2-1b --runs 5 --cold
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from checkpoint import SHAPES, write

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

_RESULTS = Path(__file__).with_suffix(".jsonl")
_PRELUDE = """
import os, re, sys, time
def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) * 1024
base, adapter, out = sys.argv[1:]
{imports}
before = peak()
started = time.perf_counter()
{work}
for folder, _, files in os.walk(out):
    for file in files:
        with open(os.path.join(folder, file), "rb") as opened:
            os.fsync(opened.fileno())
seconds = time.perf_counter() - started
print(seconds, before, peak())
"""
_IMPORTS = "import subprocess, transformers, tuneserve.artifacts as artifacts"
_CONTENDERS = {
    # With our imports too: on a virtual machine, memory freed seconds before is dearer than what was freed just now.
    "cp": (_IMPORTS, "subprocess.run(['cp', '-r', base, out], check=True)"),
    "tuneserve": (_IMPORTS, "artifacts.export(adapter, out, verify=False)"),
    "peft": (
        "import torch; from peft import PeftModel; from transformers import AutoModelForCausalLM",
        "model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)\n"
        "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)",
    ),
}


def measure(name: str, home: Path, *, cold: bool) -> tuple[float, int, int]:
    """Return seconds, and peak resident bytes before and after the work."""
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")
    imports, work = _CONTENDERS[name]
    out = home / "out"
    command = [sys.executable, "-W", "ignore", "-c", _PRELUDE.format(imports=imports, work=work)]
    result = subprocess.run(
        [*command, str(home / "base"), str(home / "adapter"), str(out)], capture_output=True, text=True, check=True
    )
    shutil.rmtree(out)
    seconds, before, after = result.stdout.split()[-3:]
    return float(seconds), int(before), int(after)


def main() -> None:
    """Measure and append the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="a disk with room for three times the model")
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        home = Path(scratch)
        write(SHAPES[options.shape], home, rank=16)
        nbytes = (home / "base" / "model.safetensors").stat().st_size
        found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in _CONTENDERS}
        for _ in range(options.runs):
            for name in ("cp", "tuneserve"):
                found[name].append(measure(name, home, cold=options.cold))
        found["peft"] = [measure("peft", home, cold=options.cold) for _ in range(options.runs)]
    context = circumstances() | {"memory_gb": round(psutil.virtual_memory().total / 1e9, 1)}
    with _RESULTS.open("a") as results:
        for name, runs in found.items():
            seconds = [run[0] for run in runs]
            ratios = [run[0] / copy[0] for run, copy in zip(runs, found["cp"], strict=True)]
            line = {
                "contender": name,
                "shape": options.shape,
                "page_cache": "cold" if options.cold else "warm",
                "bytes": nbytes,
                "seconds": [round(value, 2) for value in seconds],
                "median_ratio_to_cp": round(statistics.median(ratios), 2),
                "peak_mb": round(max(run[2] for run in runs) / 1e6),
                "peak_above_imports_mb": round(max(run[2] - run[1] for run in runs) / 1e6),
                **context,
            }
            results.write(json.dumps(line) + "\n")
            print(
                f"{name:10} {statistics.median(seconds):7.1f} s  {line['median_ratio_to_cp']:5.2f} × cp  "
                f"{line['peak_above_imports_mb']:6} MB above imports"
            )


if __name__ == "__main__":
    main()
