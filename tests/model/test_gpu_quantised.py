"""Protects: on the GPU's kernels, weights in few bits give the logits of the same weights dequantised."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.adapters import merge_model
from tuneserve.checkpoint import SafetensorsWriter, StoredCodes, TensorSpec, open_checkpoint, write_json
from tuneserve.checkpoint.quantised import CT_ENCODERS, Bnb4bitEncoder
from tuneserve.kernels.gpu.packed import pack, unpacked
from tuneserve.model import Decoder, DenseLinear, Linear, Weights, load_weights
from tuneserve.model._gpu import GpuDecoder
from tuneserve.model._gpu_packed import Bits, pack_stored, quantise
from tuneserve.model._gpu_reasons import gpu_reasons_against
from tuneserve.sources import open_files
from tuneserve.spec import ModelSpec, read_spec

from .paged import Paged
from .test_families import compute, prompt

Make = Callable[..., Path]
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 32}
CPU = torch.device("cpu")
# NF4's table is rounded to bfloat16, for the matrix units to take it.
ERROR = {"nf4": 8e-3}


def quantised(directory: Path, method: str) -> Path:
    """Write the model in ``directory`` with its linear weights as ``method`` stores them."""
    source = open_checkpoint(directory)
    linears = [
        TensorSpec(name, header.dtype, header.shape)
        for name, header in source.tensors.items()
        if name.endswith("_proj.weight")
    ]
    names = [spec.name for spec in linears]
    encoder = Bnb4bitEncoder(names) if method == "nf4" else CT_ENCODERS[method](linears, ["lm_head"])
    out = directory / method
    out.mkdir()
    write_json(out / "config.json", encoder.config(json.loads((directory / "config.json").read_text())))
    specs = [TensorSpec(name, header.dtype, header.shape) for name, header in source.tensors.items()]
    with SafetensorsWriter(out / "model.safetensors", [part for spec in specs for part in encoder.stored(spec)]) as to:
        for spec in specs:
            for part, tensor in zip(encoder.stored(spec), encoder.encode(spec, source.read(spec.name)), strict=True):
                to.write(part.name, tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return out


def deferred(directory: Path) -> tuple[ModelSpec, Weights]:
    model = merge_model(*open_files(directory, None), [], "float32")
    spec = read_spec(model.config)
    return spec, load_weights(spec, model, torch.float32, CPU, deferred=True)


def assert_same_logits(ours: GpuDecoder, exact: Decoder, error: float, counts: tuple[int, ...] = (1,)) -> None:
    """Compare a prompt, and single tokens of each of ``counts`` sequences."""
    (mine,), (expected,) = Paged(ours).logits([prompt(5, 1)], 5), compute(exact, [prompt(5, 1)], 5)
    assert float((mine - expected).norm() / expected.norm()) < error
    for count in counts:
        texts = [prompt(2, index) for index in range(count)]
        decoder = GpuDecoder.__new__(GpuDecoder)
        decoder.__dict__.update(ours.__dict__, _keys=torch.empty(0))
        mine = torch.stack([rows[-1] for rows in Paged(decoder, blocks=40).logits(texts, 1)])
        expected = torch.stack([rows[-1] for rows in compute(exact, texts, 2)])
        assert float((mine - expected).norm() / expected.norm()) < error


@pytest.mark.parametrize("method", ["nf4", "int4", "w8a16", "int8", "fp8", "fp8_block"])
def test_as_they_are_stored(method: str, make_family: Make) -> None:
    directory = quantised(make_family("llama", **WIDE), method)
    spec, weights = deferred(directory)
    assert gpu_reasons_against(spec, weights) == []
    ours = GpuDecoder(spec, weights, 64, 40)
    # Blocks of 128 rows do not divide the keys', nor then what is stored beside them.
    assert (ours.weights.kept, ours.weights.dequantised) == (3 if method == "fp8_block" else 4, 0)
    exact = Decoder(spec, weights.loaded(), 64)
    assert ours.weight_bytes < exact.weight_bytes
    assert_same_logits(ours, exact, ERROR.get(method, 1e-5), (1, 3, 34) if method == "nf4" else (1,))


@pytest.mark.parametrize(("family", "changes"), [("gemma2", {}), ("phi3", {"partial_rotary_factor": 0.5})])
def test_norms_after_products_gelu_and_heads_rotated_in_part(
    family: str, changes: dict[str, Any], make_family: Make
) -> None:
    spec, weights = deferred(quantised(make_family(family, **WIDE, **changes), "int8"))
    ours = GpuDecoder(spec, weights, 64, 40)
    assert (ours.weights.kept, ours.weights.dequantised) == (4, 0)
    assert_same_logits(ours, Decoder(spec, weights.loaded(), 64), 1e-5, (2,))


def test_not_where_that_is_not_wanted(make_family: Make) -> None:
    spec, weights = deferred(quantised(make_family("llama", **WIDE), "nf4"))
    ours = GpuDecoder(spec, weights, 64, 40, keep=False)
    assert (ours.weights.kept, ours.weights.dequantised) == (0, 0)
    assert_same_logits(ours, Decoder(spec, weights.loaded(), 64), 1e-5)


def test_experts_are_dequantised_between_layers_that_are_not(make_family: Make) -> None:
    sizes = {"moe_intermediate_size": 128, "mlp_only_layers": [], "num_experts": 3, "num_experts_per_tok": 2}
    spec, weights = deferred(quantised(make_family("qwen3_moe", **WIDE, **sizes), "int4"))
    ours = GpuDecoder(spec, weights, 64, 40)
    assert (ours.weights.kept, ours.weights.dequantised) == (2, 3 * 3)
    assert_same_logits(ours, Decoder(spec, weights.loaded(), 64), 1e-5)


def test_what_does_not_fit_is_dequantised(make_family: Make) -> None:
    # The 96 columns of down are no whole fragments of 4 bits.
    directory = quantised(make_family("llama biases", **{**WIDE, "intermediate_size": 96}), "nf4")
    spec, weights = deferred(directory)
    ours = GpuDecoder(spec, weights, 64, 40)
    assert (ours.weights.kept, ours.weights.dequantised) == (3, 1)
    assert_same_logits(ours, Decoder(spec, weights.loaded(), 64), ERROR["nf4"])


def test_weights_stored_in_different_ways_are_not_packed_together() -> None:
    scales = torch.ones(16, 2)
    four = StoredCodes("nf4", torch.zeros(16, 64, dtype=torch.uint8), scales)
    eight = replace(four, kind="int8")
    assert pack_stored([four, four], CPU, torch.float32, gated=False) is not None
    assert pack_stored([four, eight], CPU, torch.float32, gated=False) is None
    # The halves of a gate are of 24 rows, which is no whole number of fragments.
    assert pack_stored([four, four, four], CPU, torch.float32, gated=True) is None


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantised_when_loaded(bits: Bits, make_family: Make) -> None:
    spec, weights = deferred(make_family("llama", **WIDE))
    assert gpu_reasons_against(spec, weights, quantised=True) == []
    whole = weights.loaded()

    def rounded(linear: Linear | None, kind: Bits) -> DenseLinear:
        assert isinstance(linear, DenseLinear)
        return DenseLinear(unpacked(pack(quantise(linear.weight, kind))), linear.bias)

    layers = tuple(
        replace(
            layer,
            qkv=rounded(layer.qkv, bits),
            output=rounded(layer.output, bits),
            gate_up=rounded(layer.gate_up, bits),
            down=rounded(layer.down, bits),
        )
        for layer in whole.layers
    )
    exact = Decoder(spec, replace(whole, layers=layers, head=rounded(whole.head, "int8")), 64)
    assert_same_logits(GpuDecoder(spec, weights, 64, 40, bits=bits), exact, 1e-5)


@pytest.mark.parametrize(("bits", "steps"), [("int8", 255), ("int4", 15)])
def test_rounding_is_to_the_nearest_of_the_codes(bits: Bits, steps: int) -> None:
    weight = torch.randn(16, 128) * torch.logspace(-3, 1, 16)[:, None]
    weight[3, :32], weight[4, 32:64] = 0.0, 0.7
    found = unpacked(pack(quantise(weight, bits)))
    groups = weight.view(16, 4, 32)
    step = (groups.abs().amax(-1) * 2 if bits == "int8" else groups.amax(-1) - groups.amin(-1)) / steps
    # Cutting the ends off, where that is the better on the whole, may cost them two steps.
    allowed = step * (0.51 if bits == "int8" else 2.5) + groups.abs().amax(-1) * 2**-10
    assert ((found - weight).view(16, 4, 32).abs().amax(-1) <= allowed).all()
    mean = (found - weight).view(16, 4, 32).square().mean(-1).sqrt()
    assert (mean <= step * 0.35 + groups.abs().amax(-1) * 2**-10).all()


def test_what_cannot_be_quantised_is_said(make_family: Make) -> None:
    spec, weights = deferred(make_family("llama", **{**WIDE, "hidden_size": 96}))
    assert gpu_reasons_against(spec, weights, quantised=True) == ["hidden_size is 96, not a multiple of 64"]
