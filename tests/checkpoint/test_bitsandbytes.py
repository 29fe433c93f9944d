"""What bitsandbytes quantised is read as bitsandbytes itself dequantises it; what it would never write is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from tuneserve.checkpoint.quantised import open_weights
from tuneserve.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
CONFIG = {"dtype": "bfloat16", "quantization_config": {"quant_method": "bitsandbytes"}}


def _four_bit(weight: torch.Tensor, **options: Any) -> tuple[Tensors, torch.Tensor]:
    """Return the tensors that store ``weight`` as "w", and what bitsandbytes makes of them."""
    packed, state = functional.quantize_4bit(weight, **options)
    parts = {f"w.{name}": tensor.clone() for name, tensor in state.as_dict(packed=True).items()}
    return {"w": packed, **parts}, functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("block_size", [32, 64, 512])
def test_four_bit_weights_are_bitwise_what_the_library_dequantises(
    write_weights: Callable[[Tensors], Path], quant_type: str, nested: bool, dtype: torch.dtype, block_size: int
) -> None:
    weight = torch.randn(48, 512, generator=torch.Generator().manual_seed(3)).to(dtype)
    stored, expected = _four_bit(weight, quant_type=quant_type, compress_statistics=nested, blocksize=block_size)
    reader = open_weights(write_weights({"other": torch.ones(3), **stored}), CONFIG)
    assert {name: (spec.dtype, spec.shape) for name, spec in reader.tensors.items()} == {
        "other": ("F32", (3,)),
        "w": (NAMES[dtype], (48, 512)),
    }
    assert reader.read("w").dtype == dtype
    assert torch.equal(reader.read("w"), expected)
    assert torch.equal(reader.read("other"), torch.ones(3))


# Rows of which none is whole blocks, a last block that is not full, and more than one slab. bitsandbytes is asked for a
# single row, because its AVX-512 kernel scales the values of such rows by other blocks' scales (0.50.2).
@pytest.mark.parametrize("shape", [(7, 10), (40, 24), (64, 96), (1024, 1552)])
def test_blocks_run_across_rows_and_slabs(write_weights: Callable[[Tensors], Path], shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float32).bfloat16()
    stored, _ = _four_bit(weight, quant_type="nf4", compress_statistics=True)
    row, state = functional.quantize_4bit(weight.view(1, -1), quant_type="nf4", compress_statistics=True)
    expected = functional.dequantize_4bit(row, state).view(shape)
    assert torch.equal(open_weights(write_weights(stored), CONFIG).read("w"), expected)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32, torch.int8])
def test_values_packed_in_other_dtypes_are_read(write_weights: Callable[[Tensors], Path], storage: torch.dtype) -> None:
    weight = torch.randn(1500, 1024, generator=torch.Generator().manual_seed(5)).bfloat16()
    stored, expected = _four_bit(weight, quant_type="nf4", quant_storage=storage)
    assert stored["w"].dtype == storage
    assert torch.equal(open_weights(write_weights(stored), CONFIG).read("w"), expected)


def test_int8_weights_are_what_the_library_dequantises(write_weights: Callable[[Tensors], Path]) -> None:
    weight = torch.randn(1100, 1000, generator=torch.Generator().manual_seed(6)).half()
    values, scales, _ = functional.int8_vectorwise_quant(weight)
    expected = functional.int8_vectorwise_dequant(values, scales).bfloat16()
    stored = {"m.weight": values, "m.SCB": scales, "m.weight_format": torch.tensor(0, dtype=torch.uint8)}
    reader = open_weights(write_weights(stored), CONFIG)
    assert list(reader.tensors) == ["m.weight"]
    assert torch.equal(reader.read("m.weight"), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_8bit": True},
    ],
)
def test_a_model_that_transformers_quantised_has_the_names_and_values_it_dequantises_to(
    tmp_path: Path, make_llama: Callable[..., Path], options: dict[str, Any]
) -> None:
    base = make_llama(intermediate_size=128, tie_word_embeddings=False)
    config = BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    model.save_pretrained(tmp_path / "quantised")
    saved = json.loads((tmp_path / "quantised" / "config.json").read_text())
    reader = open_weights(tmp_path / "quantised", saved)
    expected = model.dequantize(dtype=torch.bfloat16).state_dict()
    assert reader.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(reader.read(name), tensor), name


@pytest.mark.parametrize("options", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_conv1d_weights_return_to_the_orientation_of_their_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=80, n_positions=16))
    model.save_pretrained(tmp_path / "base")
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(**options)
    )
    quantised.save_pretrained(tmp_path / "quantised")
    reader = open_weights(tmp_path / "quantised", json.loads((tmp_path / "quantised" / "config.json").read_text()))
    name = "transformer.h.0.attn.c_attn.weight"
    assert reader.tensors[name].shape == reader.read(name).shape == model.state_dict()[name].shape == (64, 192)
    assert torch.equal(reader.read(name), quantised.dequantize(dtype=torch.float32).state_dict()[name].t())


def test_configs_from_before_quant_method_are_bitsandbytes(write_weights: Callable[[Tensors], Path]) -> None:
    stored, expected = _four_bit(torch.randn(8, 64).half(), quant_type="nf4")
    config = {"torch_dtype": "float16", "quantization_config": {"load_in_4bit": True}}
    assert torch.equal(open_weights(write_weights(stored), config).read("w"), expected)


def test_the_quantisation_of_a_text_model_inside_another_is_found(write_weights: Callable[[Tensors], Path]) -> None:
    stored, expected = _four_bit(torch.randn(8, 64).half(), quant_type="nf4")
    config = {"model_type": "outer", "text_config": CONFIG}
    assert torch.equal(open_weights(write_weights(stored), config).read("w"), expected)


def _change_state(stored: Tensors, **changes: Any) -> None:
    key = next(name for name in stored if "quant_state" in name)
    state = {**json.loads(bytes(stored[key].tolist())), **changes}
    stored[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


STATE = "w.quant_state.bitsandbytes__nf4"
LIES: dict[str, Callable[[Tensors], Any]] = {
    "block size 0": lambda t: _change_state(t, blocksize=0),
    "block size 3": lambda t: _change_state(t, blocksize=3),
    "another block size": lambda t: _change_state(t, blocksize=128),
    "another shape": lambda t: _change_state(t, shape=[8, 128]),
    "a negative shape": lambda t: _change_state(t, shape=[-8, -64]),
    "an overflowing shape": lambda t: _change_state(t, shape=[2**62, 2**62]),
    "a shape of nothing": lambda t: _change_state(t, shape=[0, 64]),
    "a shape of floats": lambda t: _change_state(t, shape=[8.0, 64.0]),
    "no shape": lambda t: _change_state(t, shape=None),
    "another type": lambda t: _change_state(t, quant_type="fp4"),
    "an unknown dtype": lambda t: _change_state(t, dtype="load"),
    "a huge offset": lambda t: _change_state(t, nested_offset=10**1000),
    "an infinite offset": lambda t: _change_state(t, nested_offset=float("inf")),
    "no nested block size": lambda t: _change_state(t, nested_blocksize=0),
    "another nested block size": lambda t: _change_state(t, nested_blocksize=4),
    "not JSON": lambda t: t.update({STATE: torch.tensor([255, 254], dtype=torch.uint8)}),
    "deep JSON": lambda t: t.update({STATE: torch.full((4096,), ord("["), dtype=torch.uint8)}),
    "a list": lambda t: t.update({STATE: torch.tensor(list(b"[1]"), dtype=torch.uint8)}),
    "absurdly long": lambda t: t.update({STATE: torch.full((100_000,), 32, dtype=torch.uint8)}),
    "numbers for a state": lambda t: t.update({STATE: torch.ones(16)}),
    "no values": lambda t: t.pop("w"),
    "too few values": lambda t: t.update(w=t["w"][:-1]),
    "a row of values": lambda t: t.update(w=t["w"].t()),
    "no scales": lambda t: t.pop("w.absmax"),
    "too many scales": lambda t: t.update({"w.absmax": torch.zeros(9, dtype=torch.uint8)}),
    "scales of another dtype": lambda t: t.update({"w.absmax": torch.zeros(8)}),
    "no scales of scales": lambda t: t.pop("w.nested_absmax"),
    "a short code of scales": lambda t: t.update({"w.nested_quant_map": torch.zeros(16)}),
    "no state": lambda t: t.pop(STATE),
    "two states": lambda t: t.update(
        {STATE.replace("nf4", "fp4"): torch.tensor(list(bytes(t[STATE].tolist()).replace(b"nf4", b"fp4"))).byte()}
    ),
    "parts of a weight that is not there": lambda t: t.update({"v.weight.absmax": torch.zeros(8)}),
    "int8 without scales": lambda t: t.update({"v.weight": torch.zeros(8, 8, dtype=torch.int8)}),
    "scales without int8": lambda t: t.update({"v.SCB": torch.zeros(8)}),
    "int8 in tiles": lambda t: t.update(
        {
            "v.weight": torch.zeros(8, 8, dtype=torch.int8),
            "v.SCB": torch.zeros(8),
            "v.weight_format": torch.tensor(2, dtype=torch.uint8),
        }
    ),
    "int8 with too few scales": lambda t: t.update(
        {"v.weight": torch.zeros(8, 8, dtype=torch.int8), "v.SCB": torch.zeros(7)}
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_inconsistent_parts_are_refused(write_weights: Callable[[Tensors], Path], lie: str) -> None:
    stored, _ = _four_bit(torch.randn(8, 64).half(), quant_type="nf4", compress_statistics=True)
    LIES[lie](stored)
    with pytest.raises(CheckpointError, match=r"; \S.*\.$"):
        open_weights(write_weights(stored), CONFIG)


def test_another_code_than_the_librarys_is_refused(write_weights: Callable[[Tensors], Path]) -> None:
    stored, _ = _four_bit(torch.randn(8, 64).half(), quant_type="nf4")
    stored["w.quant_map"] = functional.get_4bit_type("fp4", device="cpu")
    with pytest.raises(CheckpointError, match="is not the code NF4"):
        open_weights(write_weights(stored), CONFIG).read("w")


def test_sixteen_bit_weights_under_a_leftover_config_are_refused(write_weights: Callable[[Tensors], Path]) -> None:
    with pytest.raises(CheckpointError, match="remove quantization_config"):
        open_weights(write_weights({"m.weight": torch.ones(4, 4)}), CONFIG)


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm", "hqq", "quanto", "x" * 1000])
def test_methods_that_cannot_be_read_are_named(write_weights: Callable[[Tensors], Path], method: str) -> None:
    config = {"quantization_config": {"quant_method": method}}
    with pytest.raises(CheckpointError, match=rf"quantised with '{method[:40]}'.*use the 16-bit model") as caught:
        open_weights(write_weights({"m.weight": torch.ones(4, 4)}), config)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("quantisation", [{}, [], "gptq", {"quant_method": 3}, {"load_in_4bit": "yes"}])
def test_a_quantization_config_that_says_nothing_is_refused(
    write_weights: Callable[[Tensors], Path], quantisation: Any
) -> None:
    with pytest.raises(CheckpointError, match="does not say how"):
        open_weights(write_weights({"m.weight": torch.ones(4, 4)}), {"quantization_config": quantisation})


def test_the_library_tested_against_is_the_one_whose_arithmetic_is_promised() -> None:
    assert tuple(int(part) for part in bnb.__version__.split(".")[:2]) >= (0, 50)
