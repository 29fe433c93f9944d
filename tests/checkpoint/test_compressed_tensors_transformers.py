"""Transformers loads what the encoders write, and finds in it the weights that the reader finds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from tuneserve.checkpoint import TensorSpec, open_checkpoint
from tuneserve.checkpoint.quantised import CT_ENCODERS, open_weights

# How far the weights may move, relative to their norm: half a step of the format, for normally distributed ones.
ERROR = {
    "fp8": 0.03, "fp8_block": 0.03, "mxfp8": 0.03, "int8": 0.01, "w8a16": 0.01,
    "int4": 0.12, "mxfp4": 0.13, "mxfp4a16": 0.13, "nvfp4a16": 0.11,
}  # fmt: skip
WEIGHTS_ALONE = ("w8a16", "int4", "mxfp4a16", "nvfp4a16")


def _quantise(base: Path, directory: Path, method: str) -> Path:
    checkpoint = open_checkpoint(base)
    specs = [TensorSpec(name, header.dtype, header.shape) for name, header in checkpoint.tensors.items()]
    encoder = CT_ENCODERS[method]([spec for spec in specs if spec.name.endswith("_proj.weight")], ["lm_head"])
    for name in encoder.observed:
        encoder.observe(name, checkpoint.read(name))
    tensors: dict[str, torch.Tensor] = {}
    for spec in specs:
        names = (part.name for part in encoder.stored(spec))
        tensors |= dict(zip(names, encoder.encode(spec, checkpoint.read(spec.name)), strict=True))
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = encoder.config(json.loads((base / "config.json").read_text()))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("method", CT_ENCODERS)
def test_transformers_loads_every_method(method: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    base = make_llama(hidden_size=128, intermediate_size=256, head_dim=32, num_key_value_heads=4)
    quantised = _quantise(base, tmp_path / "quantised", method)
    reader = open_weights(quantised, json.loads((quantised / "config.json").read_text()))

    dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    weights = {name: parameter for name, parameter in dense.named_parameters() if name.endswith("_proj.weight")}
    assert len(weights) == 14
    for name, parameter in weights.items():
        ours, exact = reader.read(name).float(), parameter.data.float()
        assert 0 < (ours - exact).norm() / exact.norm() < ERROR[method], name
        parameter.data = reader.read(name)

    with pytest.warns(UserWarning, match="already has a"):
        dequantised = AutoModelForCausalLM.from_pretrained(
            quantised, dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    for name in weights:
        assert torch.equal(dequantised.get_parameter(name).data, reader.read(name)), name
    as_stored = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.bfloat16)
    ids = torch.arange(24).view(1, -1)
    with torch.no_grad():
        expected = dense(ids).logits
        assert torch.equal(dequantised(ids).logits, expected)
        # The others quantise what goes into each layer too, so that only their weights must be the same.
        logits = as_stored(ids).logits
    assert torch.equal(logits, expected) or method not in WEIGHTS_ALONE
    for name in weights:
        assert torch.equal(as_stored.get_parameter(name).data, reader.read(name)), name
