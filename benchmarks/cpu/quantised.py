"""Decode speed of the demo model from quantised files and checkpoints, kept in their bits, beside llama.cpp.

Prompts of 32 random tokens, 128 new tokens, greedy, end of sequence ignored; tokens per second over all sequences,
prefill included. All models are loaded, then measured in turn, and that several times, the best of which counts: so
whatever else the machine does disturbs them alike. llama.cpp (``llama-cpp-python``) runs the same GGUF files, one
sequence at a time.

Appends one line of JSON per measurement to ``quantised.jsonl`` and prints a table.

    python benchmarks/cpu/quantised.py
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import llama_cpp
import torch
from decode import NEW, PROMPT, about, native_run, prompts, read_bandwidth
from low_bit_quality import models

from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

BATCHES = (1, 16)
GGUF = ("gguf:q4_1", "gguf:q4_k_m", "gguf:q8_0")
RESULTS = Path(__file__).with_suffix(".jsonl")
Run = Callable[[int, int], tuple[float, float]]


def llama_run(model: llama_cpp.Llama, batch: int, seed: int) -> tuple[float, float]:
    """Return the seconds of a run of llama.cpp, and of a token."""
    (prompt,) = prompts(batch, seed).tolist()
    began = time.perf_counter()
    count = sum(1 for _, _ in zip(range(NEW), model.generate(prompt, temp=0.0, reset=True), strict=False))
    assert count == NEW
    took = time.perf_counter() - began
    return took, took / NEW


def main() -> None:
    """Measure in turn, append, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--directory", type=Path, help="keep the models there, and use them if they are there")
    options = parser.parse_args()
    demo = resolve("demo").model_dir
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.directory or Path(scratch)
        sources = {"16-bit": demo, "int8 at load": demo, "int4 at load": demo}
        sources |= models(directory, demo, (*GGUF, "merged_4bit", "fp8", "int8"))
        runs: dict[tuple[str, int], Run] = {}
        megabytes: dict[str, float] = {}
        for name, path in sources.items():
            weights = name.partition(" ")[0] if name.endswith("at load") else "auto"
            core = NativeCore(
                EngineConfig.of(
                    resolve(path), dtype="bfloat16", context_length=PROMPT + NEW, max_running=max(BATCHES),
                    prefix_cache=False, weights=weights,
                )
            )  # fmt: skip
            megabytes[f"native, {name}"] = round(core.info.weight_bytes / 1e6, 1)
            runs |= {(f"native, {name}", batch): partial(native_run, core) for batch in BATCHES}
        for name, path in ((name, sources[name]) for name in GGUF):
            model = llama_cpp.Llama(str(path), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
            runs[f"llama.cpp, {name}", 1] = partial(llama_run, model)
        bandwidth = read_bandwidth(threads, 4)
        best: dict[tuple[str, int], tuple[float, float]] = {}
        loads = []
        for round_ in range(options.rounds):
            loads.append(os.getloadavg()[0])
            for key, run in runs.items():
                total, step = run(key[1], round_)
                before = best.get(key, (total, step))
                best[key] = (min(before[0], total), min(before[1], step))
    context = about() | {
        "read_gb_per_second": round(bandwidth / 1e9, 1), "rounds": options.rounds,
        "load_average": round(max(loads), 1), "llama_cpp_python": llama_cpp.__version__,
    }  # fmt: skip
    print("| tok/s | MB | batch 1 | 16 |\n| --- | --- | --- | --- |")
    with RESULTS.open("a") as file:
        for name in dict.fromkeys(name for name, _ in runs):
            rates = {}
            for batch in BATCHES:
                if (found := best.get((name, batch))) is not None:
                    rates[batch] = round(batch * NEW / found[0], 1)
                    line = {"engine": name, "batch": batch, "tokens_per_second": rates[batch]}
                    line |= {"step_ms": round(1e3 * found[1], 3), "weight_mb": megabytes.get(name)}
                    file.write(json.dumps(line | context) + "\n")
            numbers = " | ".join(f"{rates[batch]:,.0f}" if batch in rates else "" for batch in BATCHES)
            print(f"| {name} | {megabytes.get(name, '')} | {numbers} |")


if __name__ == "__main__":
    main()
