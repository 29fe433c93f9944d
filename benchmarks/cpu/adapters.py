"""What adapters that stay unmerged cost the native engine on the demo model, by batch size.

Each adapter has rank 16 on every linear layer of attention and feed-forward. Prompts of 32 random tokens, 128 new
tokens, greedy, end of sequence ignored. The base alone, one adapter for all sequences, and eight adapters in turn are
run one after the other in one process, several times over, and medians are taken: what else runs on the machine then
slows each of them alike. The cost is that of the median step, base to adapters, of the same round. Its floor is what
reading each adapter of a step once takes, at the read bandwidth measured in the same run.

Appends one line of JSON per measurement to ``adapters.jsonl`` and prints a table. The number of threads is PyTorch's
own choice unless ``OMP_NUM_THREADS`` is set.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from decode import read_bandwidth
from safetensors.torch import save_file

from tuneserve.checkpoint import open_checkpoint
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

BATCHES = (1, 8, 16, 64)
PROMPT, NEW, RANK, ADAPTERS = 32, 128, 16, 8
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RESULTS = Path(__file__).with_suffix(".jsonl")


def write_adapter(directory: Path, base: Path, seed: int) -> Path:
    """Write a random adapter in bfloat16, small enough to leave the text as it is."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, header in open_checkpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(LINEARS):
            for side, shape in (("A", (RANK, header.shape[1])), ("B", (header.shape[0], RANK))):
                values = torch.randn(shape, generator=generator) * 0.01
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = values.bfloat16()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(LINEARS)}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def run(core: NativeCore, batch: int, seed: int, names: list[str | None]) -> tuple[float, float]:
    """Return the seconds of a whole run and of its median step."""
    params = SamplingParams(max_tokens=NEW, temperature=0)
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(100, 49000, (batch, PROMPT), generator=generator).tolist()
    for index, prompt in enumerate(prompts):
        adapter = names[index % len(names)]
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=params, adapter=adapter))
    steps = []
    while not core.idle:
        began = time.perf_counter()
        core.step()
        steps.append(time.perf_counter() - began)
    return sum(steps), statistics.median(steps)


def measure(core: NativeCore, batch: int, rounds: int, read_seconds: float) -> list[dict[str, Any]]:
    """Return the medians of each way to serve a batch; reading one adapter takes ``read_seconds``."""
    ways: dict[str, list[str | None]] = {
        "base": [None], "1 adapter": ["0"], f"{ADAPTERS} adapters": [str(index) for index in range(ADAPTERS)]
    }  # fmt: skip
    load = os.getloadavg()[0]
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for seed in range(rounds):
        for way, names in ways.items():
            found[way].append(run(core, batch, seed, names))
    results = []
    base_step = statistics.median(step for _, step in found["base"])
    for way, times in found.items():
        read = 0 if way == "base" else min(batch, len(ways[way]))
        costs = [step / base - 1 for (_, step), (_, base) in zip(times, found["base"], strict=True)]
        results.append({
            "serving": way,
            "batch": batch,
            "tokens_per_second": round(batch * NEW / statistics.median(total for total, _ in times), 1),
            "step_ms": round(1e3 * statistics.median(step for _, step in times), 3),
            "cost": round(statistics.median(costs), 4),
            "floor": round(read * read_seconds / base_step, 4),
            "rounds": rounds,
            "load_average": round(load, 1),
        })  # fmt: skip
    return results


def about() -> dict[str, Any]:
    """Return what a result depends on: the commit, the machine, the versions, the work."""
    return circumstances() | {"threads": torch.get_num_threads(), "prompt": PROMPT, "new": NEW, "rank": RANK}


def main() -> None:
    """Measure, append the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, action="append", help="repeatable; 1, 8, 16 and 64 unless given")
    parser.add_argument("--weights", choices=("auto", "int8", "int4"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    batches = options.batch or list(BATCHES)
    model_dir = resolve("demo").model_dir
    settings = EngineConfig(
        model_dir=str(model_dir), dtype="bfloat16", context_length=PROMPT + NEW, weights=options.weights,
        max_running=max(batches), prefix_cache=False,
    )  # fmt: skip
    core = NativeCore(settings)
    bandwidth = read_bandwidth(torch.get_num_threads(), 20)
    size = 0
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(ADAPTERS):
            directory = write_adapter(Path(scratch) / str(index), model_dir, index)
            core.load_adapter(str(index), directory)
            size = (directory / "adapter_model.safetensors").stat().st_size
    found = {"adapter_bytes": size, "read_gb_per_second": round(bandwidth / 1e9, 1)}
    context = {"weights": options.weights} | found | about()
    print("| batch | serving | tok/s | step, ms | cost | floor |\n| --- | --- | --- | --- | --- | --- |")
    with RESULTS.open("a", buffering=1) as file:
        for batch in batches:
            for result in measure(core, batch, options.rounds, size / bandwidth):
                file.write(json.dumps(result | context) + "\n")
                shares = f"{result['cost']:+.1%} | {result['floor']:.1%}"
                numbers = f"{result['tokens_per_second']:,.0f} | {result['step_ms']:.2f} | {shares}"
                print(f"| {batch} | {result['serving']} | {numbers} |")


if __name__ == "__main__":
    main()
