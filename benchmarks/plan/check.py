"""Decode speed of the native engine on this machine's processor beside what ``tuneserve plan`` expects of it.

Prompts of 32 tokens, 32 new ones, greedy, end of sequence ignored; the medians of the steps count. The estimate's own
figures come from two models, the demo and one that is wide (``calibrates`` is true); the third is of another shape.
Appends one line of JSON per run to ``check.jsonl``; ``ratio`` is the measured speed by the expected one, and within 25%
it lies between 0.75 and 1.25. ``load_average`` says whether the machine was quiet.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.hardware import Machine, describe_machine
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.planner import plan
from tuneserve.sources import resolve
from tuneserve.spec import read_spec, tensor_shapes

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

BATCHES = (1, 8, 16, 32)
ROUNDS = 3
PROMPT, NEW, CONTEXT = 32, 32, 128
_LLAMA = {
    "model_type": "llama", "vocab_size": 8192, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "head_dim": 64,
    "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "wide": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 6, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "another": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 20, "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
}  # fmt: skip
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


def expected(source: str, machine: Machine, batch: int) -> float:
    """Return the tokens per second that the plan expects."""
    made = plan(source, hardware=machine, context=CONTEXT, concurrency=batch)
    assert made.engine == "native" and made.taken.speed is not None
    speed = made.taken.speed.total
    assert speed is not None
    return speed


def measure(source: str, core: NativeCore, batch: int) -> dict[str, Any]:
    """Return one run beside its estimate."""
    load = os.getloadavg()[0]
    machine = describe_machine("cpu")
    wanted, measured = expected(source, machine, batch), batch / statistics.median(steps(core, batch))
    return {
        "batch": batch,
        "bandwidth": round((machine.bandwidth or 0) / 1e9, 1),
        "expected": round(wanted, 1),
        "measured": round(measured, 1),
        "ratio": round(measured / wanted, 2),
        "load_average": round(load, 1),
    }


def write_model(directory: Path, shape: dict[str, Any]) -> str:
    """Write a model with small random weights."""
    config = _LLAMA | shape
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(read_spec(config))
    tensors = {name: torch.randn(size).mul(0.02).bfloat16() for name, size in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    return str(directory)


def main() -> None:
    """Measure every model at every batch size and append the results."""
    context = circumstances() | {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as scratch, RESULTS.open("a", buffering=1) as file:
        sources = {"demo": "demo"}
        sources |= {name: write_model(Path(scratch) / name, shape) for name, shape in SHAPES.items()}
        for name, source in sources.items():
            config = EngineConfig.of(
                resolve(source), dtype="bfloat16", context_length=CONTEXT, max_running=max(BATCHES)
            )
            core = NativeCore(config)
            steps(core, 1)
            for batch in BATCHES * ROUNDS:
                run = {"model": name, "calibrates": name != "another"} | measure(source, core, batch)
                file.write(json.dumps(run | context) + "\n")
                print(run)


if __name__ == "__main__":
    main()
