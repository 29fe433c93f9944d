"""Protects: the memory that is planned for the native engine is what its process takes, within 10%."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.planner import plan

# Fills the cache of eight sequences to their last token, and reports what is resident then.
_SERVE = """
import json, sys
from pathlib import Path
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore

context, sequences = 160, 8
core = NativeCore(
    EngineConfig(model_dir=sys.argv[1], dtype="bfloat16", max_running=sequences, context_length=context)
)
params = SamplingParams(max_tokens=2, temperature=0)
for number in range(sequences):
    core.add(GenerationRequest(id=str(number), prompt_ids=[5] * (context - 2), params=params))
while not core.idle:
    core.step()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps(int(status["VmRSS"].split()[0]) * 1024))
"""
_SHAPE = {
    "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 24,
    "num_key_value_heads": 12, "head_dim": 64, "vocab_size": 8192, "max_position_embeddings": 160,
}  # fmt: skip


def test_the_native_engine_takes_what_was_planned(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", _SHAPE)
    made = plan(source, hardware="cpu-2c-16GB", context=160, concurrency=8)
    assert (made.engine, made.max_running) == ("native", 8)
    assert made.taken.fit is not None
    planned = made.taken.fit.weights + made.taken.fit.overhead + 8 * made.taken.fit.cache
    result = subprocess.run([sys.executable, "-c", _SERVE, source], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == pytest.approx(planned, rel=0.1)
