"""Decode speed of the native engine on the demo model, with 16-bit, int8 and int4 weights, by batch size.

Prompts of 32 random tokens, 128 new tokens, greedy, end of sequence ignored; tokens per second over all sequences,
prefill included. Each number is the best of several runs: whatever else runs on a machine only makes a run slower. A
step at batch 1 reads every weight once, so its number also says what share of the machine's read bandwidth it reached;
that is measured in the same run, on the same number of threads. ``--transformers`` adds Transformers in bfloat16.

Appends one line of JSON per measurement to ``decode.jsonl`` and prints a table. The number of threads is PyTorch's own
choice unless ``OMP_NUM_THREADS`` is set.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

BATCHES = (1, 8, 16, 64)
WEIGHTS = ("auto", "int8", "int4")
PROMPT, NEW = 32, 128
RESULTS = Path(__file__).with_suffix(".jsonl")


def read_bandwidth(threads: int, runs: int) -> float:
    """Return the bytes per second that ``threads`` threads read from memory together, each its own 256 MB."""
    arrays = [np.ones(1 << 25) for _ in range(threads)]
    best = 0.0
    for _ in range(runs):
        workers = [threading.Thread(target=array.max) for array in arrays]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - began))
    return best


def prompts(batch: int, seed: int) -> torch.Tensor:
    """Return random prompts, (batch, PROMPT)."""
    return torch.randint(100, 49000, (batch, PROMPT), generator=torch.Generator().manual_seed(seed))


def native_run(core: NativeCore, batch: int, seed: int) -> tuple[float, float]:
    """Return the seconds of a whole run and of its median step."""
    params = SamplingParams(max_tokens=NEW, temperature=0)
    for index, prompt in enumerate(prompts(batch, seed).tolist()):
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=params))
    steps = []
    while not core.idle:
        began = time.perf_counter()
        core.step()
        steps.append(time.perf_counter() - began)
    return sum(steps), sorted(steps)[len(steps) // 2]


def measure(run: Callable[[int, int], tuple[float, float]], batch: int, runs: int) -> dict[str, Any]:
    """Return the best of ``runs`` runs at a batch size."""
    load = os.getloadavg()[0]
    found = [run(batch, seed) for seed in range(runs)]
    return {
        "batch": batch,
        "tokens_per_second": round(batch * NEW / min(total for total, _ in found), 1),
        "step_ms": round(1e3 * min(step for _, step in found), 3),
        "runs": runs,
        "load_average": round(load, 1),
    }


def transformers_run(model_dir: Path) -> Callable[[int, int], tuple[float, float]]:
    """Return the same measurement of Transformers; its steps are not timed apart."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None

    def run(batch: int, seed: int) -> tuple[float, float]:
        ids = prompts(batch, seed)
        began = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=2)
        total = time.perf_counter() - began
        return total, total / NEW

    return run


def about() -> dict[str, Any]:
    """Return what a result depends on: the commit, the machine, the versions, the work."""
    return circumstances() | {"threads": torch.get_num_threads(), "prompt": PROMPT, "new": NEW}


def table(results: list[dict[str, Any]], batches: list[int]) -> str:
    """Return the results as Markdown, tokens per second."""
    lines = ["| tok/s | " + " | ".join(f"batch {batch}" for batch in batches) + " | bandwidth at batch 1 |"]
    lines.append("|" + " --- |" * (len(batches) + 2))
    for engine in dict.fromkeys(result["engine"] for result in results):
        mine = {result["batch"]: result for result in results if result["engine"] == engine}
        share = next(
            (f"{result['bandwidth_share']:.0%}" for result in mine.values() if "bandwidth_share" in result), ""
        )
        numbers = " | ".join(f"{mine[batch]['tokens_per_second']:,.0f}" for batch in batches)
        lines.append(f"| {engine} | {numbers} | {share} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, append the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, action="append", help="repeatable; 1, 8, 16 and 64 unless given")
    parser.add_argument("--weights", choices=WEIGHTS, action="append", help="repeatable; all unless given")
    parser.add_argument("--step", choices=("auto", "compiled", "eager"), default="auto")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--transformers", action="store_true")
    options = parser.parse_args()
    batches = options.batch or list(BATCHES)
    model_dir = resolve("demo").model_dir
    bandwidth = read_bandwidth(torch.get_num_threads(), 2 * options.runs)
    context = about() | {"read_gb_per_second": round(bandwidth / 1e9, 1)}
    results = []
    with RESULTS.open("a", buffering=1) as file:

        def record(engine: str, run: Callable[[int, int], tuple[float, float]], weight_bytes: int | None) -> None:
            for batch in batches:
                result = {"engine": engine} | measure(run, batch, options.runs)
                if batch == 1 and weight_bytes is not None:
                    result["bandwidth_share"] = round(weight_bytes / (result["step_ms"] / 1e3) / bandwidth, 3)
                results.append(result)
                file.write(json.dumps(result | context) + "\n")

        config = json.loads((model_dir / "config.json").read_text())
        # The embedding is looked up, not read; the head is packed apart from it.
        looked_up = 2 * config["vocab_size"] * config["hidden_size"] if options.step != "eager" else 0
        for weights in options.weights or WEIGHTS:
            settings = EngineConfig(
                model_dir=str(model_dir), dtype="bfloat16", context_length=PROMPT + NEW, weights=weights,
                cpu_step=options.step, max_running=max(batches), prefix_cache=False,
            )  # fmt: skip
            core = NativeCore(settings)
            name = "16-bit" if weights == "auto" else weights
            record(f"native {name}", partial(native_run, core), core.info.weight_bytes - looked_up)
        if options.transformers:
            record("transformers", transformers_run(model_dir), None)
    print(table(results, batches))


if __name__ == "__main__":
    main()
