"""Decode speed of the native engine beside Transformers on the demo model, paired for a shared machine.

Prompts of 32 random tokens, 128 new tokens, greedy, end of sequence ignored. The two engines take turns step by step
(the prefill is the first), so that whatever else runs on the machine slows both alike; the ratio of a round is the
median over its steps of Transformers' time by the native engine's.

Appends one line of JSON per round to ``decode.jsonl`` and prints a table of the medians over the rounds. The number of
threads is PyTorch's own choice unless ``OMP_NUM_THREADS`` is set.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

BATCHES = (1, 8, 16)
ROUNDS = 3
PROMPT, NEW = 32, 128
RESULTS = Path(__file__).with_suffix(".jsonl")


class Turns:
    """A Transformers streamer that runs and times a step of the native engine after each step of its own generation."""

    def __init__(self, core: NativeCore) -> None:
        self.native: list[float] = []
        self.transformers: list[float] = []
        self._core = core
        self._handed_over: float | None = None

    def put(self, _tokens: torch.Tensor) -> None:
        """Take the prompt or the tokens of a step."""
        now = time.perf_counter()
        if self._handed_over is not None:
            self.transformers.append(now - self._handed_over)
        if not self._core.idle:
            now = time.perf_counter()
            self._core.step()
            self.native.append(time.perf_counter() - now)
        self._handed_over = time.perf_counter()

    def end(self) -> None:
        """Learn that generation is over."""


def measure(core: NativeCore, model: torch.nn.Module, batch: int, seed: int) -> dict[str, Any]:
    """Return the speeds of both engines on ``batch`` random prompts, and their paired ratio."""
    ids = torch.randint(100, 49000, (batch, PROMPT), generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(max_tokens=NEW, temperature=0)
    for index, prompt in enumerate(ids.tolist()):
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=params))
    turns = Turns(core)
    load = os.getloadavg()[0]
    model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=2, streamer=turns
    )
    assert core.idle
    assert len(turns.native) == len(turns.transformers) == NEW
    steps = {"native": turns.native, "transformers": turns.transformers}
    return {
        "batch": batch,
        "ratio": round(statistics.median(map(float.__truediv__, turns.transformers, turns.native)), 3),
        "step_ms": {engine: round(1e3 * statistics.median(times), 2) for engine, times in steps.items()},
        "tokens_per_second": {engine: round(batch * NEW / sum(times), 1) for engine, times in steps.items()},
        "load_average": round(load, 1),
    }


def about() -> dict[str, Any]:
    """Return what a result depends on: the commit, the machine, the versions and the configuration."""
    describe = ("git", "describe", "--always", "--abbrev=40", "--dirty")
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "commit": subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip(),
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "bfloat16",
        "prompt": PROMPT,
        "new": NEW,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the medians over the rounds as Markdown."""
    lines = [
        "| batch | native, ms per step | Transformers, ms per step | ratio | lowest and highest round |",
        "|" + " --- |" * 5,
    ]
    for batch in BATCHES:
        rounds = [result for result in results if result["batch"] == batch]
        native, peer = (
            statistics.median(result["step_ms"][engine] for result in rounds) for engine in ("native", "transformers")
        )
        ratios = sorted(result["ratio"] for result in rounds)
        middle = statistics.median(ratios)
        lines.append(f"| {batch} | {native:.1f} | {peer:.1f} | {middle:.2f} | {ratios[0]:.2f}, {ratios[-1]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure both engines at every batch size and append the results."""
    model_dir = resolve("demo").model_dir
    core = NativeCore(EngineConfig(model_dir=str(model_dir), dtype="bfloat16"))
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    measure(core, model, 1, seed=0)
    context, results = about(), []
    with RESULTS.open("a", buffering=1) as file:
        for number in range(ROUNDS):
            for batch in BATCHES:
                results.append(measure(core, model, batch, seed=number))
                file.write(json.dumps(results[-1] | context) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
