"""Decode speed of the demo model from quantised files and checkpoints, kept in their bits, beside llama.cpp.

Prompts of 32 random tokens, 48 new tokens, greedy, end of sequence ignored. All models are loaded, then measured in
turn, and that several times. What is reported is tokens per second of decode steps as the fastest twentieth of them
were: on a shared machine the others say more about what else ran. llama.cpp (``llama-cpp-python``) runs the same GGUF
files, one sequence at a time.

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
from itertools import pairwise
from pathlib import Path

import llama_cpp
import torch
from decode import PROMPT, about, prompts
from low_bit_quality import models

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

BATCHES = (1, 16)
GGUF = ("gguf:q4_1", "gguf:q4_k_m", "gguf:q8_0")
RESULTS = Path(__file__).with_suffix(".jsonl")
NEW = 48
Run = Callable[[int, int], list[float]]


def native_run(core: NativeCore, batch: int, seed: int) -> list[float]:
    """Return the seconds of each decode step."""
    params = SamplingParams(max_tokens=NEW, temperature=0)
    for index, prompt in enumerate(prompts(batch, seed).tolist()):
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=params))
    steps = []
    while not core.idle:
        began = time.perf_counter()
        tokens = len(core.step())
        if tokens == batch:
            steps.append(time.perf_counter() - began)
    return steps[1:]


def llama_run(model: llama_cpp.Llama, batch: int, seed: int) -> list[float]:
    """Likewise, by llama.cpp."""
    (prompt,) = prompts(batch, seed).tolist()
    tokens = model.generate(prompt, temp=0.0, reset=True)
    times = [time.perf_counter() for _, _ in zip(range(NEW), tokens, strict=False)]
    return [after - before for before, after in pairwise(times)]


def main() -> None:
    """Measure in turn, append, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
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
        steps: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
        loads = []
        for round_ in range(options.rounds):
            loads.append(os.getloadavg()[0])
            for key, run in runs.items():
                steps[key] += run(key[1], round_)
    context = about() | {
        "new": NEW, "rounds": options.rounds, "load_average": [round(load, 1) for load in loads],
        "llama_cpp_python": llama_cpp.__version__,
    }  # fmt: skip
    print("| tok/s | MB | batch 1 | 16 |\n| --- | --- | --- | --- |")
    with RESULTS.open("a") as file:
        for name in dict.fromkeys(name for name, _ in runs):
            rates = {}
            for batch in BATCHES:
                if found := sorted(steps.get((name, batch), [])):
                    fast = found[len(found) // 20]
                    rates[batch] = round(batch / fast, 1)
                    line = {"engine": name, "batch": batch, "tokens_per_second": rates[batch]}
                    line |= {
                        "fast_step_ms": round(1e3 * fast, 3),
                        "median_step_ms": round(1e3 * found[len(found) // 2], 3),
                    }
                    file.write(json.dumps(line | {"weight_mb": megabytes.get(name)} | context) + "\n")
            numbers = " | ".join(f"{rates[batch]:,.0f}" if batch in rates else "" for batch in BATCHES)
            print(f"| {name} | {megabytes.get(name, '')} | {numbers} |")


if __name__ == "__main__":
    main()
