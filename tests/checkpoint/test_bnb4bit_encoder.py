"""merged_4bit is what bitsandbytes itself would have saved, and loads as that does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from tuneserve.checkpoint import TensorSpec, open_checkpoint
from tuneserve.checkpoint.quantised import Bnb4bitEncoder, open_weights
from tuneserve.errors import CheckpointError

NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}
STATE = "w.quant_state.bitsandbytes__nf4"


def _config(dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what "w" is stored as, after checking it against what was announced."""
    encoder = Bnb4bitEncoder({"w"})
    spec = TensorSpec("w", NAMES[weight.dtype], tuple(weight.shape))
    before = weight.clone()
    stored, tensors = encoder.stored(spec), encoder.encode(spec, weight)
    assert torch.equal(weight.view(torch.uint8), before.view(torch.uint8))
    for part, tensor in zip(stored, tensors, strict=True):
        assert (part.dtype, part.shape) == (NAMES[tensor.dtype], tuple(tensor.shape))
        assert tensor.is_contiguous()
    return {part.name: tensor for part, tensor in zip(stored, tensors, strict=True)}


def _library(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    return {"w": packed, **{f"w.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}


def _assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if "quant_state" in name:
            assert bytes(ours[name].tolist()).rstrip(b" ") == bytes(tensor.tolist())
            continue
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 64), (40, 24), (7, 9), (1, 1), (300, 256), (1100, 1024)])
def test_every_byte_is_the_librarys(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for seed, spread in enumerate((0.02, 1.0, 1e-4)):
        weight = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)
        _assert_same(_encode(weight), _library(weight))


def test_sizes_are_known_before_the_values() -> None:
    for exponent in range(-44, 37):
        weight = torch.rand(4, 64, generator=torch.Generator().manual_seed(exponent + 44)) * 10.0**exponent
        _assert_same(_encode(weight), _library(weight))


def test_values_halfway_between_two_codes_round_as_the_librarys() -> None:
    code = functional.get_4bit_type("nf4", device="cpu")
    halfway = (code[:-1] + code[1:]) / 2
    row = torch.cat((halfway, halfway.nextafter(torch.tensor(2.0)), halfway.nextafter(torch.tensor(-2.0)), code))
    weight = torch.nn.functional.pad(row, (0, 3), value=1.0).repeat(8, 1)
    assert weight.shape == (8, 64)
    _assert_same(_encode(weight), _library(weight))


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(8, 64),
        torch.zeros(3, 5),
        torch.full((8, 64), -0.0),
        torch.full((64, 64), 3.0),
        torch.cat((torch.zeros(32, 64), torch.ones(32, 64))),
        torch.full((64, 64), 1e-42),
        torch.full((8, 64), 1e37),
        torch.cat((torch.full((300, 64), 1e-30), torch.full((1, 64), 1e30))),
    ],
)
def test_blocks_of_nothing_and_of_extremes_are_the_librarys(weight: torch.Tensor) -> None:
    _assert_same(_encode(weight), _library(weight))


def test_the_bytes_do_not_depend_on_the_number_of_threads() -> None:
    weight = torch.randn(2200, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.set_num_threads(4)
    many = _encode(weight)
    torch.set_num_threads(1)
    _assert_same(many, _library(weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_weight_whose_scales_have_no_mean_is_refused(value: float) -> None:
    weight = torch.ones(4, 64)
    weight[2:, 3] = value
    with pytest.raises(CheckpointError, match="too large or not finite"):
        _encode(weight)


def test_other_tensors_pass_through() -> None:
    spec, tensor = TensorSpec("norm", "F32", (4,)), torch.ones(4)
    encoder = Bnb4bitEncoder({"w"})
    assert encoder.stored(spec) == (spec,)
    assert encoder.encode(spec, tensor)[0] is tensor


def _export(base: Path, out: Path, encoder: Bnb4bitEncoder) -> None:
    """Write what an export of the model in ``base`` would."""
    checkpoint = open_checkpoint(base)
    tensors = {}
    for name, spec in checkpoint.tensors.items():
        parts = zip(encoder.stored(spec), encoder.encode(spec, checkpoint.read(name)), strict=True)
        tensors.update({part.name: tensor for part, tensor in parts})
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(encoder.config(json.loads((base / "config.json").read_text()))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_has_the_tensors_and_config_that_transformers_saves_and_the_same_logits(
    tmp_path: Path, make_llama: Callable[..., Path], dtype: torch.dtype
) -> None:
    base = make_llama(dtype=dtype, tie_word_embeddings=False, intermediate_size=128)
    library = AutoModelForCausalLM.from_pretrained(base, quantization_config=_config(dtype))
    library.save_pretrained(tmp_path / "theirs")
    linears = {name for name in open_checkpoint(base).tensors if name.endswith("_proj.weight")}
    _export(base, tmp_path / "ours", Bnb4bitEncoder(linears))

    _assert_same(load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors"))
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
    assert ours["quantization_config"] == theirs["quantization_config"]

    tokens = torch.arange(40)[None]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.inference_mode():
        assert torch.equal(reloaded(tokens).logits, library(tokens).logits)


def test_conv1d_weights_are_stored_as_transformers_stores_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=80, n_positions=16))
    model.bfloat16().save_pretrained(tmp_path / "base")
    library = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=_config())
    library.save_pretrained(tmp_path / "theirs")
    names = {
        n
        for n in open_checkpoint(tmp_path / "base").tensors
        if n.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    }
    _export(tmp_path / "base", tmp_path / "ours", Bnb4bitEncoder(names, transposed=names))
    _assert_same(load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors"))


def test_skipped_modules_stay_in_sixteen_bits_on_reload(tmp_path: Path, make_llama: Callable[..., Path]) -> None:
    base = make_llama(tie_word_embeddings=False, intermediate_size=128)
    linears = {n for n in open_checkpoint(base).tensors if n.endswith("_proj.weight") and "layers.1" not in n}
    _export(base, tmp_path / "ours", Bnb4bitEncoder(linears, skipped=("lm_head", "model.layers.1")))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16


def test_what_was_written_is_read_again(write_weights: Callable[[dict[str, torch.Tensor]], Path]) -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    config = Bnb4bitEncoder({"w"}).config({"dtype": "bfloat16"})
    reader = open_weights(write_weights(_encode(weight)), config)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(reader.read("w"), functional.dequantize_4bit(packed, state))
