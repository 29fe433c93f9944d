"""Decode speed of the native engine beside Transformers, on the demo model, in one run.

Prompts of 32 random tokens, 128 new tokens, greedy, end of sequence ignored; tokens per second over all sequences,
prefill included. Appends one line of JSON per engine and batch size to ``decode.jsonl``.
"""

import json
import platform
import subprocess
import time
from pathlib import Path

import torch
import transformers

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

BATCHES = (1, 8, 16)
PROMPT, NEW = 32, 128
RESULTS = Path(__file__).with_suffix(".jsonl")


def prompts(batch: int) -> list[list[int]]:
    """Return ``batch`` random prompts, the same in every run."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(100, 49000, (batch, PROMPT), generator=generator).tolist()


def native(core: NativeCore, batch: int) -> float:
    """Return tokens per second of the native engine."""
    params = SamplingParams(max_tokens=NEW, temperature=0)
    started = time.perf_counter()
    for index, ids in enumerate(prompts(batch)):
        core.add(GenerationRequest(id=str(index), prompt_ids=ids, params=params))
    while not core.idle:
        core.step()
    return batch * NEW / (time.perf_counter() - started)


def peer(model: torch.nn.Module, batch: int) -> float:
    """Return tokens per second of Transformers' ``generate``."""
    ids = torch.tensor(prompts(batch))
    started = time.perf_counter()
    model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=2,
    )
    return batch * NEW / (time.perf_counter() - started)


def main() -> None:
    """Measure both engines at every batch size and append the results."""
    model_dir = resolve("demo").model_dir
    core = NativeCore(EngineConfig(model_dir=str(model_dir), dtype="bfloat16"))
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S607
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    about = {
        "commit": commit,
        "cpu": cpu.partition(":")[2].strip(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "bfloat16",
    }
    native(core, 1)
    peer(model, 1)
    with RESULTS.open("a") as file:
        for batch in BATCHES:
            speeds = {"native": native(core, batch), "transformers": peer(model, batch)}
            for engine, speed in speeds.items():
                file.write(
                    json.dumps({"engine": engine, "batch": batch, "tokens_per_second": round(speed, 1)} | about) + "\n"
                )
            print(batch, {name: round(speed, 1) for name, speed in speeds.items()})


if __name__ == "__main__":
    main()
