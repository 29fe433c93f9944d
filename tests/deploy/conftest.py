"""Models that are headers alone, a file of keys, and deployments of them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint import TensorSpec, safetensors_header
from tuneserve.deploy import Deployment, find_target, make_deployment
from tuneserve.planner import Objective, plan
from tuneserve.spec import read_spec, tensor_shapes

LLAMA_70B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="session")
def llama_70b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the shape of Llama 3 70B, whose weights are a hole in the file."""
    directory = tmp_path_factory.mktemp("shapes") / "llama-70b"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA_70B))
    specs = [TensorSpec(name, "BF16", shape) for name, shape in tensor_shapes(read_spec(LLAMA_70B)).items()]
    with (directory / "model.safetensors").open("wb") as file:
        file.write(safetensors_header(specs))
        file.truncate(file.tell() + sum(spec.nbytes for spec in specs))
    return directory


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Return a file with the hash of one API key."""
    path = tmp_path / "keys.toml"
    path.write_text(f'[alice]\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\n')
    return path


@pytest.fixture
def describe(keys: Path) -> Callable[..., Deployment]:
    """Return what makes a deployment of a source on some hardware."""

    def make(
        source: str | Path,
        hardware: str,
        concurrency: int | None = None,
        objective: Objective = "throughput",
        **options: Any,
    ) -> Deployment:
        planned = plan(source, hardware=hardware, concurrency=concurrency, objective=objective)
        return make_deployment(planned, **{"key_file": keys, **options})

    return make


@pytest.fixture
def render(describe: Callable[..., Deployment]) -> Callable[..., dict[str, str]]:
    """Return what renders a deployment for a target."""

    def make(target: str, source: str | Path, hardware: str, **options: Any) -> dict[str, str]:
        return find_target(target).render(describe(source, hardware, **options))

    return make
