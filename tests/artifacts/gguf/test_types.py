"""Protects: every name of a GGUF type that users of Unsloth and llama.cpp know means the same here, or is refused."""

import gguf
import pytest

from tuneserve.artifacts.gguf import PRESETS, gguf_type
from tuneserve.artifacts.gguf._types import tensor_bytes
from tuneserve.errors import InputError


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("quantized", "q4_k_m"), ("fast_quantized", "q8_0"), ("q4_k", "q4_k_m"), ("q5_k", "q5_k_m"),
        ("q3_k", "q3_k_m"), ("Q4_K_M", "q4_k_m"), ("q8_0", "q8_0"), ("not_quantized", "bf16"),
    ],
)  # fmt: skip
def test_aliases_mean_what_they_mean_to_unsloth(name: str, meant: str) -> None:
    assert gguf_type(name) == meant


def test_not_quantised_keeps_the_dtype_of_the_weights() -> None:
    assert gguf_type("not_quantized", "F16") == "f16"


@pytest.mark.parametrize(("name", "nearest"), [("q4_k_n", "q4_k_m"), ("q8", "q8_0"), ("x" * 10**6, "q4_k_m")])
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=nearest) as error:
        gguf_type(name)
    assert len(str(error.value)) < 200


def test_presets_have_the_numbers_of_llama_cpp() -> None:
    for name, preset in PRESETS.items():
        kind = "ALL_F32" if name == "f32" else f"MOSTLY_{name.upper()}"
        assert gguf.LlamaFileType[kind] == preset.file_type


def test_a_tensor_takes_as_many_bytes_as_its_blocks() -> None:
    assert tensor_bytes("Q4_K", (3, 512)) == 3 * 2 * 144
