"""What the encoders write is, bit for bit, what the compressed-tensors library itself would write."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor, ModelCompressor, compress_module
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
    initialize_module_for_quantization,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from transformers import AutoConfig, AutoModelForCausalLM

from tuneserve.checkpoint import TensorSpec
from tuneserve.checkpoint.quantised import CT_ENCODERS, ObservingEncoder
from tuneserve.errors import CheckpointError

PRESETS = {
    "fp8": "FP8_DYNAMIC",
    "fp8_block": "FP8_BLOCK",
    "int8": "W8A8",
    "w8a16": "W8A16",
    "int4": "W4A16",
    "mxfp8": "MXFP8",
    "mxfp4": "MXFP4",
    "mxfp4a16": "MXFP4A16",
    "nvfp4a16": "NVFP4A16",
}
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


def _weight(rows: int = 256, columns: int = 384, seed: int = 0) -> torch.Tensor:
    """Return values of many magnitudes, with ties, outliers, zero rows, and negative zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 2.0 ** torch.randint(
        -9, 3, (rows, 1), generator=generator
    )
    weight[3] = 0
    weight[5] = -0.0
    weight[7, :128] = 0
    weight[9] = torch.arange(columns) / 64 - 3
    weight[11, 0] = 1000
    return weight


def _library(weight: torch.Tensor, method: str) -> dict[str, torch.Tensor]:
    """Return what the library's own scales of a minimum and maximum and its compressor make of ``weight``.

    Scales are in the weight's dtype as in llm-compressor, codes in float32 from there on.
    """
    scheme = preset_name_to_scheme(PRESETS[method], ["Linear"])
    args = scheme.weights
    rows, columns = weight.shape
    observed = weight if args.scale_dtype is None else weight.float()
    if args.strategy == "block":
        blocks = observed.view(rows // 128, 128, columns // 128, 128).transpose(1, 2).flatten(2)
    else:
        blocks = observed.view(rows, -1, args.group_size or columns)
    state = {"weight": weight.float()}
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(observed.min(), observed.max())
    state["weight_scale"], _ = calculate_qparams(
        blocks.amin(-1), blocks.amax(-1), args, state.get("weight_global_scale")
    )
    return dict(BaseCompressor.get_value_from_registry(_format(scheme)).compress(state, scheme))


def _format(scheme: QuantizationScheme) -> str:
    from compressed_tensors.compressors.format import infer_module_format

    return str(infer_module_format(torch.nn.Linear, scheme).value)


def _encode(method: str, spec: TensorSpec, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    encoder = CT_ENCODERS[method]([spec], ["lm_head"])
    stored = encoder.stored(spec)
    tensors = encoder.encode(spec, weight)
    for part, tensor in zip(stored, tensors, strict=True):
        assert (NAMES[tensor.dtype], tuple(tensor.shape)) == (part.dtype, part.shape)
        assert tensor.is_contiguous()
    return {part.name.removeprefix("x."): tensor for part, tensor in zip(stored, tensors, strict=True)}


def _assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        same = torch.equal(ours[name].view(torch.uint8), tensor.contiguous().view(torch.uint8))
        assert same, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", PRESETS)
def test_every_bit_is_the_library_s(method: str, dtype: str) -> None:
    weight = _weight().to(DTYPES[dtype])
    before = weight.clone()
    ours = _encode(method, TensorSpec("x.weight", dtype, tuple(weight.shape)), weight)
    _assert_same_bits(ours, _library(weight, method))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("method", PRESETS)
def test_slabs_of_rows_join_without_a_seam(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneserve.checkpoint.quantised.compressed_tensors import _quantise

    spec, weight = TensorSpec("x.weight", "BF16", (256, 384)), _weight().bfloat16()
    whole = _encode(method, spec, weight)
    monkeypatch.setattr(_quantise, "_SLAB", 384 * 130)
    _assert_same_bits(_encode(method, spec, weight), whole)


@pytest.mark.parametrize("method", PRESETS)
def test_the_configuration_is_what_the_library_saves(method: str, make_llama: Any, tmp_path: Path) -> None:
    directory = make_llama(hidden_size=128, intermediate_size=256, head_dim=32, num_key_value_heads=4)
    config = AutoConfig.from_pretrained(directory)
    model = AutoModelForCausalLM.from_config(config)
    scheme = preset_name_to_scheme(PRESETS[method], ["Linear"])
    wanted = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, wanted, show_progress=False)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.quantization_config.quantization_status = QuantizationStatus.COMPRESSED
    (tmp_path / "config.json").write_text("{}")
    compressor.update_config(str(tmp_path))

    linear = [TensorSpec("model.layers.0.mlp.up_proj.weight", "BF16", (256, 128))]
    saved = CT_ENCODERS[method](linear, ["lm_head"]).config({"model_type": "llama"})
    assert saved["model_type"] == "llama"
    assert saved["quantization_config"] == json.loads((tmp_path / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("method", ["mxfp8", "int4", "fp8_block", "nvfp4a16"])
def test_what_does_not_divide_into_groups_stays_and_is_ignored(method: str) -> None:
    odd = TensorSpec("a.down_proj.weight", "BF16", (256, 72))
    fits = TensorSpec("a.o_proj.weight", "BF16", (256, 256))
    encoder = CT_ENCODERS[method]([odd, fits], ["lm_head"])
    assert encoder.stored(odd) == (odd,)
    assert len(encoder.stored(fits)) > 1
    weight = torch.ones(256, 72, dtype=torch.bfloat16)
    assert torch.equal(encoder.encode(odd, weight)[0], weight)
    assert encoder.config({})["quantization_config"]["ignore"] == ["lm_head", "a.down_proj"]


def test_blocks_that_fit_only_some_of_the_joined_weights_are_used_for_none() -> None:
    linear = [
        TensorSpec(f"a.{name}.weight", "BF16", (rows, 128))
        for name, rows in [("q_proj", 256), ("k_proj", 64), ("v_proj", 64), ("o_proj", 128)]
    ]
    ignored = CT_ENCODERS["fp8_block"](linear, []).config({})["quantization_config"]["ignore"]
    assert ignored == ["a.q_proj", "a.k_proj", "a.v_proj"]


@pytest.mark.parametrize("method", ["int4", "mxfp4", "fp8_block"])
def test_a_model_of_which_nothing_divides_is_refused(method: str) -> None:
    with pytest.raises(CheckpointError, match="choose fp8 or int8"):
        CT_ENCODERS[method]([TensorSpec("a.weight", "BF16", (8, 30))], [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", PRESETS)
def test_values_that_are_not_finite_are_refused(method: str, value: float) -> None:
    weight = torch.ones(128, 128)
    weight[77, 5] = value
    with pytest.raises(CheckpointError, match=r"x\.weight holds values that are not finite"):
        _encode(method, TensorSpec("x.weight", "F32", (128, 128)), weight)


def test_joined_weights_share_the_second_scale_of_nvfp4_as_in_the_library() -> None:
    linear = [TensorSpec(f"a.{name}_proj.weight", "F32", (32, 64)) for name in ("q", "k", "v", "o")]
    weights = {spec.name: torch.randn(32, 64, generator=torch.Generator().manual_seed(i)) * (i + 1)
               for i, spec in enumerate(linear)}  # fmt: skip
    encoder = CT_ENCODERS["nvfp4a16"](linear, [])
    assert isinstance(encoder, ObservingEncoder)
    assert encoder.observed == tuple(spec.name for spec in linear[:3])
    for name in encoder.observed:
        encoder.observe(name, weights[name])
    largest = max(weights[name].abs().max() for name in encoder.observed)
    shared = generate_gparam(-largest, largest)
    for spec in linear[:3]:
        codes, scale, global_scale = encoder.encode(spec, weights[spec.name])
        assert torch.equal(global_scale, shared)
        state = {"weight": weights[spec.name], "weight_global_scale": shared}
        scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
        blocks = weights[spec.name].view(32, -1, 16)
        state["weight_scale"], _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights, shared)
        theirs = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized").compress(state, scheme)
        _assert_same_bits(
            {"weight_packed": codes, "weight_scale": scale, "weight_global_scale": global_scale}, dict(theirs)
        )


def test_only_nvfp4_needs_to_see_weights_first() -> None:
    linear = [TensorSpec(f"a.{name}_proj.weight", "BF16", (128, 128)) for name in ("gate", "up")]
    observed = {method: CT_ENCODERS[method](linear, []).observed for method in PRESETS}
    assert {method for method, names in observed.items() if names} == {"nvfp4a16"}


def test_a_module_of_the_library_takes_what_is_written() -> None:
    """The library's own state of a compressed ``Linear`` has the names, dtypes and shapes that are written."""
    for method, preset in PRESETS.items():
        module = torch.nn.Linear(256, 128, bias=False, dtype=torch.bfloat16)
        initialize_module_for_quantization(module, preset_name_to_scheme(preset, ["Linear"]), force_zero_point=False)
        for name in ("weight_scale", "weight_global_scale"):
            if hasattr(module, name):
                getattr(module, name).data.fill_(1)
        compress_module(module)
        spec = TensorSpec("x.weight", "BF16", (128, 256))
        stored = {part.name.removeprefix("x."): (part.dtype, part.shape) for part in
                  CT_ENCODERS[method]([spec], []).stored(spec)}  # fmt: skip
        assert stored == {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in module.state_dict().items()}, method
