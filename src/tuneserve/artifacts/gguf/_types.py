"""The types that tensors of a GGUF file can have, and the presets that users name."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tuneserve.errors import InputError


@dataclass(frozen=True, slots=True)
class Preset:
    """``file_type`` is llama.cpp's number for ``general.file_type``; ``base`` the type of most tensors."""

    file_type: int
    base: str


# llama.cpp's include/llama.h numbers them.
PRESETS: Mapping[str, Preset] = {
    "f32": Preset(0, "F32"),
    "f16": Preset(1, "F16"),
    "bf16": Preset(32, "BF16"),
    "q8_0": Preset(7, "Q8_0"),
    "q4_0": Preset(2, "Q4_0"),
    "q4_1": Preset(3, "Q4_1"),
    "q5_0": Preset(8, "Q5_0"),
    "q5_1": Preset(9, "Q5_1"),
    "q2_k": Preset(10, "Q2_K"),
    "q2_k_s": Preset(21, "Q2_K"),
    "q3_k_s": Preset(11, "Q3_K"),
    "q3_k_m": Preset(12, "Q3_K"),
    "q3_k_l": Preset(13, "Q3_K"),
    "q4_k_s": Preset(14, "Q4_K"),
    "q4_k_m": Preset(15, "Q4_K"),
    "q5_k_s": Preset(16, "Q5_K"),
    "q5_k_m": Preset(17, "Q5_K"),
    "q6_k": Preset(18, "Q6_K"),
    "iq1_s": Preset(24, "IQ1_S"),
    "iq1_m": Preset(31, "IQ1_M"),
    "iq2_xxs": Preset(19, "IQ2_XXS"),
    "iq2_xs": Preset(20, "IQ2_XS"),
    "iq2_s": Preset(28, "IQ2_XS"),
    "iq2_m": Preset(29, "IQ2_S"),
    "iq3_xxs": Preset(23, "IQ3_XXS"),
    "iq3_xs": Preset(22, "IQ3_S"),
    "iq3_s": Preset(26, "IQ3_S"),
    "iq3_m": Preset(27, "IQ3_S"),
    "iq4_nl": Preset(25, "IQ4_NL"),
    "iq4_xs": Preset(30, "IQ4_XS"),
    "mxfp4_moe": Preset(38, "MXFP4"),
}

_ALIASES = {
    "fast_quantized": "q8_0",
    "quantized": "q4_k_m",
    "q3_k": "q3_k_m",
    "q3_k_xs": "iq3_xs",
    "q4_k": "q4_k_m",
    "q5_k": "q5_k_m",
}
_SIXTEEN_BIT = {"F16": "f16", "BF16": "bf16", "F32": "bf16"}
UNQUANTISED = ("F32", "F16", "BF16")


def gguf_type(name: str, dtype: str = "BF16") -> str:
    """Return the preset that ``name`` means: one of :data:`PRESETS`, or one of Unsloth's and llama.cpp's aliases.

    ``not_quantized`` keeps ``dtype``, the dtype of the merged weights.

    Raises:
        InputError: there is no such type.
    """
    plain = name.lower()
    if plain == "not_quantized":
        return _SIXTEEN_BIT[dtype]
    preset = _ALIASES.get(plain, plain)
    if preset not in PRESETS:
        known = sorted({*PRESETS, *_ALIASES, "not_quantized"})
        nearest = difflib.get_close_matches(plain[:40], known, n=3, cutoff=0.5) or ["q4_k_m", "q8_0", "bf16"]
        raise InputError(f"there is no GGUF type {name[:40]!r}; use {' or '.join(nearest)}.")
    return preset


@dataclass(frozen=True, slots=True)
class TensorType:
    """``number`` is ggml's; a block of ``block`` elements takes ``nbytes``."""

    number: int
    block: int
    nbytes: int


@cache
def tensor_type(name: str) -> TensorType:
    """Return what the ``gguf`` package's tables say of a type, named as there ("Q4_K")."""
    import gguf

    number = gguf.GGMLQuantizationType[name]
    block, nbytes = gguf.GGML_QUANT_SIZES[number]
    return TensorType(int(number), block, nbytes)


def tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of ``shape``, the last dimension being that of a row."""
    found = tensor_type(name)
    assert shape[-1] % found.block == 0
    return math.prod(shape) // found.block * found.nbytes
