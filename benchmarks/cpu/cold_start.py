"""Cold start of the demo: from starting a process to its first token, by ``generate`` and by the engine's own process.

The C++ step is built and the files are in the page cache, as after one run, which is not counted; every run is a
process of its own. ``generate`` is the command line as a user types it, to the first byte on stdout; ``engine`` is what
the gateway starts, to the first token on its socket.

Appends one line of JSON per measurement to ``cold_start.jsonl`` and prints a table.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.engines.native import NativeEngine
from tuneserve.sources import resolve

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

RESULTS = Path(__file__).with_suffix(".jsonl")


def generate() -> float:
    """Return the seconds until ``tuneserve generate demo`` has written something."""
    command = (sys.executable, "-m", "tuneserve", "generate", "demo", "Hello!", "--max-tokens", "8")
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.read(1), "generate failed; run it by hand"
        return time.perf_counter() - began


def engine() -> float:
    """Return the seconds from starting the engine's process to its first token."""

    async def first() -> float:
        source = resolve("demo")
        began = time.perf_counter()
        started = await NativeEngine.start(source)
        request = GenerationRequest(id="a", prompt_ids=[1, 2, 3], params=SamplingParams(max_tokens=1, temperature=0))
        async for _ in started.generate(request):
            break
        seconds = time.perf_counter() - began
        await started.close()
        return seconds

    return asyncio.run(first())


def main() -> None:
    """Measure, append the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    context = circumstances()
    print("| start to first token | median | fastest | slowest |\n| --- | --- | --- | --- |")
    ways: dict[str, Callable[[], float]] = {"generate": generate, "engine": engine}
    with RESULTS.open("a") as file:
        for name, run in ways.items():
            run()
            load = os.getloadavg()[0]
            seconds = [round(run(), 3) for _ in range(runs)]
            result = {"what": name, "seconds": seconds, "load_average": round(load, 1), **context}
            file.write(json.dumps(result) + "\n")
            print(f"| {name} | {median(seconds):.2f} s | {min(seconds):.2f} s | {max(seconds):.2f} s |")


if __name__ == "__main__":
    main()
