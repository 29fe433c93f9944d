"""Decode speed of the native engine on this machine's processor beside what ``tuneserve plan`` expects of it.

Prompts of 32 tokens, 32 new ones, greedy, end of sequence ignored. The bandwidth that the plan takes is measured before
and after each run, and the faster of the two counts, as the fastest of the steps does: what else runs on the machine
only slows. Appends one line of JSON per run to ``check.jsonl``; ``ratio`` is the measured speed by the expected one,
and within 25% it lies between 0.75 and 1.25. ``load_average`` says whether the machine was quiet.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.hardware import Machine, describe_machine
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.planner import plan
from tuneserve.sources import resolve

BATCHES = (1, 8, 16)
ROUNDS = 3
PROMPT, NEW, CONTEXT = 32, 32, 128
RESULTS = Path(__file__).with_suffix(".jsonl")


def steps(core: NativeCore, batch: int) -> list[float]:
    """Return the seconds of each decode step of ``batch`` sequences."""
    params = SamplingParams(max_tokens=NEW, temperature=0)
    for number in range(batch):
        prompt = [(7 * number + token) % 1000 + 100 for token in range(PROMPT)]
        core.add(GenerationRequest(id=str(number), prompt_ids=prompt, params=params))
    times = []
    while not core.idle:
        start = time.perf_counter()
        core.step()
        times.append(time.perf_counter() - start)
    return times[1:]


def expected(machine: Machine, batch: int) -> float:
    """Return the tokens per second that the plan expects."""
    made = plan("demo", hardware=machine, context=CONTEXT, concurrency=batch)
    assert made.engine == "native" and made.taken.speed is not None
    speed = made.taken.speed.total
    assert speed is not None
    return speed


def measure(core: NativeCore, batch: int) -> dict[str, Any]:
    """Return one run beside its estimate."""
    load = os.getloadavg()[0]
    before, times, after = describe_machine("cpu"), steps(core, batch), describe_machine("cpu")
    bandwidth = max(before.bandwidth or 0.0, after.bandwidth or 0.0)
    wanted = expected(replace(before, bandwidth=bandwidth), batch)
    best, middle = batch / min(times), batch / statistics.median(times)
    return {
        "batch": batch,
        "bandwidth": round(bandwidth / 1e9, 1),
        "expected": round(wanted, 1),
        "measured": round(best, 1),
        "median": round(middle, 1),
        "ratio": round(best / wanted, 2),
        "load_average": round(load, 1),
    }


def about() -> dict[str, Any]:
    """Return what a result depends on."""
    describe = ("git", "describe", "--always", "--abbrev=40", "--dirty")
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "commit": subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip(),
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure every batch size and append the results."""
    config = EngineConfig.of(resolve("demo"), dtype="bfloat16", context_length=CONTEXT, max_running=max(BATCHES))
    core = NativeCore(config)
    steps(core, 1)
    context = about()
    with RESULTS.open("a", buffering=1) as file:
        for _ in range(ROUNDS):
            for batch in BATCHES:
                result = measure(core, batch)
                file.write(json.dumps(result | context) + "\n")
                print(result)


if __name__ == "__main__":
    main()
