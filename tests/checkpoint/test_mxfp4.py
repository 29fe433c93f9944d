"""The MXFP4 experts of gpt-oss are read as Transformers dequantises them, in its layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tuneserve.checkpoint.quantised import open_weights
from tuneserve.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Writer = Callable[[Tensors], Path]
NAME = "model.layers.0.mlp.experts.gate_up_proj"


def _config(dtype: str = "bfloat16") -> dict[str, Any]:
    return {"dtype": dtype, "quantization_config": {"quant_method": "mxfp4"}}


def _bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_experts_are_bitwise_what_transformers_dequantises(write_weights: Writer, dtype: str) -> None:
    blocks = _bytes(3, 40, 5, 16)
    # Every exponent, those included that overflow and underflow each dtype.
    scales = torch.arange(600).view(3, 40, 5).remainder(256).to(torch.uint8)
    stored = {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales, f"{NAME}_bias": torch.ones(3, 40)}
    reader = open_weights(write_weights(stored), _config(dtype))
    expected = convert_moe_packed_tensors(blocks, scales, dtype=getattr(torch, dtype))
    assert {name: spec.shape for name, spec in reader.tensors.items()} == {NAME: (3, 160, 40), f"{NAME}_bias": (3, 40)}
    torch.testing.assert_close(reader.read(NAME), expected, rtol=0, atol=0, equal_nan=True)


def test_a_model_loads_in_transformers_to_the_same_weights(tmp_path: Path) -> None:
    config = GptOssConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_local_experts=4, num_experts_per_tok=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=64, layer_types=["full_attention"],
    )  # fmt: skip
    tensors = {name: tensor.bfloat16() for name, tensor in GptOssForCausalLM(config).state_dict().items()}
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.0.mlp.experts.{name}"
        experts, columns, rows = tensors.pop(key).shape
        tensors[f"{key}_blocks"] = _bytes(experts, rows, columns // 32, 16)
        tensors[f"{key}_scales"] = _bytes(experts, rows, columns // 32, seed=1) // 16 + 115
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    saved = config.to_dict() | _config()
    (tmp_path / "config.json").write_text(json.dumps(saved))

    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=Mxfp4Config(dequantize=True))
    expected = model.state_dict()
    reader = open_weights(tmp_path, saved)
    assert reader.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert reader.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(reader.read(name), tensor), name


GOOD = {f"{NAME}_blocks": _bytes(2, 8, 3, 16), f"{NAME}_scales": _bytes(2, 8, 3)}


@pytest.mark.parametrize(
    "stored",
    [
        {f"{NAME}_blocks": GOOD[f"{NAME}_blocks"]},
        {f"{NAME}_scales": GOOD[f"{NAME}_scales"]},
        {**GOOD, f"{NAME}_scales": _bytes(2, 8, 4)},
        {**GOOD, f"{NAME}_scales": torch.ones(2, 8, 3)},
        {**GOOD, f"{NAME}_blocks": _bytes(2, 8, 3, 8)},
        {**GOOD, f"{NAME}_blocks": _bytes(8, 3, 16)},
        {**GOOD, f"{NAME}_blocks": _bytes(0, 8, 3, 16)},
        {**GOOD, NAME: torch.ones(2, 96, 8)},
        {**GOOD, "model.layers.1.mlp.experts.down_proj_scales": _bytes(2, 8, 3)},
    ],
)
def test_blocks_and_scales_that_do_not_go_together_are_refused(write_weights: Writer, stored: Tensors) -> None:
    with pytest.raises(CheckpointError, match=r"; \S.*\.$"):
        open_weights(write_weights(stored), _config())
