"""FP8 weights are read as Transformers dequantises them, by whatever shape their scales have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight

from tuneserve.checkpoint import CodeReader, open_checkpoint
from tuneserve.checkpoint.quantised import open_weights
from tuneserve.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Writer = Callable[[Tensors], Path]


def _config(dtype: str = "bfloat16", **quantisation: Any) -> dict[str, Any]:
    return {"dtype": dtype, "quantization_config": {"quant_method": "fp8", **quantisation}}


def _float8(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50).to(torch.float8_e4m3fn)


def _scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(9)) * 1e-3 + 1e-4).to(dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("scales", "block"),
    [
        (_scales(2, 3), [128, 128]),
        (_scales(2, 3, dtype=torch.bfloat16), [128, 128]),
        (_scales(2, 3).to(torch.float8_e8m0fnu), [128, 128]),
        (torch.randint(110, 125, (2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)), [128, 128]),
        (_scales(256, 12), [1, 32]),
        (_scales(2, 3), None),
        (_scales(1, 1), None),
        (_scales(256, 1), None),
    ],
)
def test_weights_are_bitwise_what_transformers_dequantises(
    write_weights: Writer, scales: torch.Tensor, block: list[int] | None, dtype: str
) -> None:
    weight = _float8(256, 384)
    stored = {"m.weight": weight, "m.weight_scale_inv": scales, "norm.weight": torch.ones(4)}
    reader = open_weights(write_weights(stored), _config(dtype, weight_block_size=block))
    expected = Fp8Dequantize(None)._dequantize_one(weight, scales, output_dtype=getattr(torch, dtype))
    assert reader.tensors.keys() == {"m.weight", "norm.weight"}
    assert reader.tensors["m.weight"].shape == (256, 384)
    assert torch.equal(reader.read("m.weight"), expected)


@pytest.mark.parametrize("changed", ["a value that is NaN", "a scale that is too large", None])
def test_codes_are_those_that_kernels_compute_with_or_none(write_weights: Writer, changed: str | None) -> None:
    weight, scales = _float8(64, 96), _scales(64, 1)
    if changed == "a value that is NaN":
        weight.view(torch.uint8)[3, 5] = 0x7F
    elif changed:
        scales[3] = 1e31
    reader = open_weights(write_weights({"m.weight": weight, "m.weight_scale": scales}), _config("float32"))
    assert isinstance(reader, CodeReader)
    codes = reader.codes("m.weight")
    assert (codes is None) == (changed is not None)
    if codes is not None:
        values = codes.codes.view(torch.float8_e4m3fn).float() * codes.scales.repeat_interleave(codes.group, dim=1)
        assert torch.equal(values, reader.read("m.weight"))


# Neither side is whole blocks, and a weight that is more than one slab.
@pytest.mark.parametrize("shape", [(200, 300), (130, 96), (1500, 1000)])
def test_blocks_cut_by_the_edge_keep_their_size(write_weights: Writer, shape: tuple[int, int]) -> None:
    weight, scales = _float8(*shape), _scales(-(-shape[0] // 128), -(-shape[1] // 128))
    reader = open_weights(
        write_weights({"m.weight": weight, "m.weight_scale_inv": scales}),
        _config("float32", weight_block_size=[128, 128]),
    )
    assert torch.equal(reader.read("m.weight"), _dequantize_fp8_weight(weight, scales, [128, 128], torch.float32))


@pytest.mark.parametrize("scales", [_scales(), _scales(1)])
def test_a_scale_for_the_whole_tensor_and_those_of_activations(write_weights: Writer, scales: torch.Tensor) -> None:
    weight = _float8(1100, 1000)
    stored = {
        "m.weight": weight,
        "m.weight_scale_inv": scales,
        "m.activation_scale": torch.tensor(0.5),
        "self_attn.k_proj.k_scale": torch.tensor(0.5),
    }
    reader = open_weights(write_weights(stored), _config())
    assert list(reader.tensors) == ["m.weight"]
    assert torch.equal(reader.read("m.weight"), (weight.float() * scales).bfloat16())


def test_scales_named_as_vllm_names_them(write_weights: Writer) -> None:
    weight, scale = _float8(64, 96), torch.tensor(0.01)
    stored = {"m.weight": weight, "m.weight_scale": scale, "m.input_scale": torch.tensor(1.0)}
    reader = open_weights(write_weights(stored), _config())
    assert list(reader.tensors) == ["m.weight"]
    assert torch.equal(reader.read("m.weight"), (weight.float() * scale).bfloat16())


@pytest.mark.parametrize("scales", [_scales(3, 2, 3), _scales(3, 1, 1)])
def test_stacked_experts_have_scales_each(write_weights: Writer, scales: torch.Tensor) -> None:
    weight = _float8(3, 256, 384)
    stored = {"experts.down_proj": weight, "experts.down_proj_scale_inv": scales}
    reader = open_weights(write_weights(stored), _config(weight_block_size=[128, 128]))
    expected = Fp8Dequantize(None)._dequantize_one(weight, scales, output_dtype=torch.bfloat16)
    assert torch.equal(reader.read("experts.down_proj"), expected)


def test_fbgemm_has_a_scale_per_row_and_is_bfloat16(write_weights: Writer) -> None:
    weight, scales = _float8(64, 96), _scales(64, 1)
    stored = {"m.weight": weight, "m.weight_scale": scales, "m.input_scale_ub": torch.tensor([1200.0])}
    config = {"dtype": "float16", "quantization_config": {"quant_method": "fbgemm_fp8"}}
    reader = open_weights(write_weights(stored), config)
    assert list(reader.tensors) == ["m.weight"]
    assert torch.equal(reader.read("m.weight"), (weight.float() * scales).bfloat16())


def test_a_model_loads_in_transformers_to_the_same_weights(tmp_path: Path, make_llama: Callable[..., Path]) -> None:
    base = make_llama(tie_word_embeddings=False, intermediate_size=128)
    checkpoint = open_checkpoint(base)
    tensors: Tensors = {}
    for name in checkpoint.tensors:
        weight = checkpoint.read(name)
        if name.endswith("_proj.weight"):
            grid = weight.float().view(weight.shape[0] // 32, 32, weight.shape[1] // 32, 32)
            scales = grid.abs().amax(dim=(1, 3)) / 448
            tensors[name] = (grid / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".weight_scale_inv")] = scales
        else:
            tensors[name] = weight
    config = json.loads((base / "config.json").read_text()) | _config(weight_block_size=[32, 32])
    (tmp_path / "fp8").mkdir()
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "fp8" / "model.safetensors", metadata={"format": "pt"})

    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8").state_dict()
    reader = open_weights(tmp_path / "fp8", config)
    assert reader.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(reader.read(name), tensor), name


@pytest.mark.parametrize(
    "stored",
    [
        {"m.weight": _float8(256, 384)},
        {"m.weight": _float8(256, 384), "m.weight_scale": _scales(), "m.weight_scale_inv": _scales()},
        {"m.weight": _float8(256, 384), "m.weight_scale_inv": _scales(3, 2)},
        {"m.weight": _float8(256, 384), "m.weight_scale_inv": _scales(0, 3)},
        {"m.weight": _float8(256, 384), "m.weight_scale_inv": _scales(384)},
        {"m.weight": _float8(256, 384), "m.weight_scale_inv": _scales(2, 3, 1)},
        {"m.weight": _float8(256, 384), "m.weight_scale_inv": torch.ones(2, 3, dtype=torch.int64)},
        {"m.weight": _float8(256), "m.weight_scale_inv": _scales()},
        {"m.weight": _float8(0, 384), "m.weight_scale_inv": _scales()},
        {"m.weight": _float8(256, 384), "m.weight_scale_inv": _scales(), "v.weight_scale_inv": _scales()},
        {"m.weight": torch.ones(4, 4)},
    ],
)
def test_scales_that_fit_no_weight_are_refused(write_weights: Writer, stored: Tensors) -> None:
    with pytest.raises(CheckpointError, match=r"; \S.*\.$"):
        open_weights(write_weights(stored), _config(weight_block_size=[128, 128]))


@pytest.mark.parametrize(
    ("config", "stored"),
    [
        (_config(weight_block_size=[0, 128]), {}),
        (_config(weight_block_size=[128]), {}),
        (_config(weight_block_size="128"), {}),
        (_config(expert_dtype="fp4"), {}),
        (_config("int8"), {}),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, {"e": _float8(2, 8, 8), "e_scale": _scales(2, 1, 1)}),
    ],
)
def test_what_cannot_be_read_right_is_refused(write_weights: Writer, config: dict[str, Any], stored: Tensors) -> None:
    directory = write_weights({"m.weight": _float8(256, 384), "m.weight_scale": _scales(256, 1), **stored})
    with pytest.raises(CheckpointError, match=r"; \S.*\.$"):
        open_weights(directory, config)
