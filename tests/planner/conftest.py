"""Models that are headers alone: the shape of Llama 3.1 8B and of a mixture of experts, in files that take no space."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint import TensorSpec, safetensors_header

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16",
}  # fmt: skip


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a Llama checkpoint, written out here and not taken from the package."""
    hidden, inter, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        linear = {
            "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (inter, hidden), "mlp.up_proj": (inter, hidden),
            "mlp.down_proj": (hidden, inter),
        }  # fmt: skip
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{prefix}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def write_headers(
    directory: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tokenizer: Path | None = None
) -> Path:
    """Write a checkpoint whose weights are a hole in the file."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    specs = [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]
    with (directory / "model.safetensors").open("wb") as file:
        file.write(safetensors_header(specs))
        file.truncate(file.tell() + sum(spec.nbytes for spec in specs))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json") if tokenizer else ():
        assert tokenizer is not None
        shutil.copy(tokenizer / name, directory)
    return directory


@pytest.fixture(scope="session")
def make_headers() -> Callable[..., Path]:
    """Return :func:`write_headers`."""
    return write_headers


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Return what writes a Llama of zeros, which occupies memory once it is read, into a directory."""

    def make(directory: Path, shape: Mapping[str, Any]) -> Path:
        config = {**LLAMA_8B, "rope_scaling": None, **shape}
        return write_headers(directory, config, llama_shapes(config))

    return make


@pytest.fixture(scope="session")
def llama_8b(tmp_path_factory: pytest.TempPathFactory, demo_base: Path) -> Path:
    """Return a directory with the shape of Llama 3.1 8B and the demo model's tokenizer."""
    return write_headers(tmp_path_factory.mktemp("shapes") / "llama-8b", LLAMA_8B, llama_shapes(LLAMA_8B), demo_base)
