"""Which type each tensor gets under a preset: the rules of llama.cpp's ``llama-quantize``, from src/llama-quant.cpp.

As of the version that llama-cpp-python 0.3.36 carries. Layers near both ends and every third one between get more
bits; so do values and the down projection, and more still where many heads share a value, or of eight experts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tuneserve.artifacts.gguf._types import PRESETS, UNQUANTISED, tensor_type
from tuneserve.errors import InputError

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_ALWAYS_F32 = ("ffn_gate_inp", "position_embd", "_norm.weight")
_CATEGORIES = (
    ("attn_qkv.weight", "value"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"),
    ("attn_output.weight", "attention output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
_TINY = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")
_TINY_LARGER = ("iq2_s", "iq2_m")
# What a type of 256 elements a block gives way to in rows that are no multiple of that.
_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model the rules look at; ``experts`` is 0 in a dense one."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int

    @property
    def shares_values(self) -> bool:
        """Whether at least four query heads share a value head."""
        return self.heads // self.kv_heads >= 4

    @property
    def is_70b(self) -> bool:
        """Whether this is what llama.cpp takes for Llama 70B, whose values are an eighth of its queries."""
        return self.architecture == "llama" and self.layers == 80 and self.heads != self.kv_heads


def tensor_types(
    preset: str, shapes: Mapping[str, tuple[int, ...]], model: Shape, importance: Collection[str] | None = None
) -> dict[str, str]:
    """Return the type of each tensor of ``shapes`` (GGUF names; the last dimension is that of a row).

    ``importance`` names the tensors that an importance matrix is about, None without one.

    Raises:
        InputError: the preset needs an importance matrix and there is none, or none about a tensor.
    """
    base = PRESETS[preset].base
    imatrix = importance is not None
    mix = _Mix(preset, model, imatrix, tied=_OUTPUT not in shapes, values=sum(_category(n) == "value" for n in shapes))
    types: dict[str, str] = {}
    # The counters of the rules run in this order.
    for name in sorted(shapes, key=lambda name: (_layer(name), name)):
        shape = shapes[name]
        if _stays_f32(name, shape):
            types[name] = "F32"
        elif base in UNQUANTISED:
            types[name] = base
        else:
            types[name] = _fitting(mix.choose(name, shape), shape[-1])
            if name not in (importance or ()) and _needs_imatrix(preset, name, types[name]):
                raise InputError(
                    f"the GGUF type {preset} is garbage without an importance matrix, and there is none for {name}; "
                    "compute one from text of your own with --imatrix-from FILE, or use q2_k or larger."
                )
    return types


def _stays_f32(name: str, shape: tuple[int, ...]) -> bool:
    rows = [size for size in shape[:-1] if size > 1]
    return not rows or not name.endswith("weight") or any(part in name for part in _ALWAYS_F32)


def _fitting(name: str, columns: int) -> str:
    if columns % tensor_type(name).block == 0:
        return name
    smaller = _FALLBACKS.get(name, name)
    return smaller if columns % tensor_type(smaller).block == 0 else "F16"


def _needs_imatrix(preset: str, name: str, chosen: str) -> bool:
    if name in (_EMBEDDING, _OUTPUT):
        return False
    return chosen in _NEED_IMATRIX or (preset == "q2_k_s" and chosen == "Q2_K")


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def _category(name: str) -> str:
    return next((category for part, category in _CATEGORIES if part in name), "other")


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


class _Mix:
    """The rules, and how many tensors of each kind they have seen."""

    def __init__(self, preset: str, model: Shape, imatrix: bool, tied: bool, values: int) -> None:
        self.preset, self.model, self.imatrix, self.tied, self.values = preset, model, imatrix, tied, values
        self.base = PRESETS[preset].base
        self.seen = {"value": 0, "down": 0, "gate": 0, "up": 0}

    def choose(self, name: str, shape: tuple[int, ...]) -> str:
        if name == _OUTPUT or (name == _EMBEDDING and self.tied):
            return self._output(shape[-1])
        if self.preset == "mxfp4_moe":
            return "MXFP4" if len(shape) == 3 and shape[0] > 1 else "Q8_0"
        if name == _EMBEDDING:
            return self._embedding()
        category = _category(name)
        number = self.seen.get(category, 0)
        # Experts are counted by the layer in their name, everything else in turn.
        layer = _layer(name) if self.model.experts > 1 and category != "value" else number
        chosen = self._tiny(category, number) if self.preset in _TINY else self._larger(category, layer)
        if category in self.seen and (self.preset not in _TINY or category in ("value", "down")):
            self.seen[category] += 1
        return chosen or self.base

    def _output(self, columns: int) -> str:
        if self.preset == "mxfp4_moe" or columns % tensor_type(self.base).block or self.base == "Q8_0":
            return "Q8_0"
        return "Q5_K" if self.preset in (*_TINY, "iq3_xxs") else "Q6_K"

    def _embedding(self) -> str:
        if self.preset in (*_TINY_LARGER, "iq3_xxs"):
            return "IQ3_S"
        return "Q2_K" if self.preset in _TINY else self.base

    def _tiny(self, category: str, number: int) -> str | None:
        model, larger = self.model, self.preset in _TINY_LARGER
        if category == "value":
            return "Q4_K" if model.shares_values or model.experts >= 4 else "IQ3_S" if larger else "Q2_K"
        if category == "key" and model.experts == 8:
            return "Q4_K"
        if category == "down" and number < model.layers // 8:
            return "IQ3_S" if larger else "Q2_K"
        if category == "attention output":
            if model.experts == 8:
                return "Q5_K"
            return "IQ3_S" if larger else "IQ2_XXS" if self.preset in ("iq1_s", "iq1_m") else None
        return None

    def _larger(self, category: str, layer: int) -> str | None:
        if category == "value":
            return self._value(layer)
        if category in ("key", "query"):
            if category == "key" and self.model.experts == 8:
                return "Q8_0"
            return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(self.preset)
        if category == "down":
            return self._down(layer)
        if category == "attention output":
            return self._attention_output()
        layers = self.model.layers
        if category in ("gate", "up") and self.preset == "iq3_xs" and layers // 8 <= layer < 7 * layers // 8:
            return "IQ3_XXS"
        return None

    def _value(self, layer: int) -> str:
        preset, shares = self.preset, self.model.shares_values
        chosen = self.base
        if preset == "q2_k":
            chosen = "Q4_K" if shares else "Q3_K"
        elif (preset in ("q2_k_s", "iq3_xs", "iq3_s") and shares) or preset == "iq3_m":
            chosen = "Q4_K"
        elif preset == "iq3_xxs":
            chosen = "Q4_K" if shares else "IQ3_XXS" if self.imatrix else "IQ3_S"
        elif preset == "q3_k_m":
            chosen = "Q5_K" if layer < 2 else "Q4_K"
        elif preset == "q3_k_l" or (preset in ("iq4_nl", "iq4_xs") and shares) or (preset == "q4_k_s" and layer < 4):
            chosen = "Q5_K"
        elif preset in ("q4_k_m", "q5_k_m") and _more_bits(layer, self.values):
            chosen = "Q6_K"
        if self.model.is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if self.model.experts == 8 else chosen

    def _down(self, layer: int) -> str | None:
        preset, layers = self.preset, self.model.layers
        early = layer < layers // 8
        if preset in ("q4_k_m", "q5_k_m"):
            return "Q6_K" if _more_bits(layer, layers) else None
        if preset == "iq3_m":
            return "Q4_K" if early or (self.model.experts == 8 and _more_bits(layer, layers)) else None
        if preset == "iq3_xxs" and not self.imatrix:
            return "Q4_K" if early else "Q3_K"
        if preset == "q3_k_m":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        if preset in ("q2_k", "q3_k_l"):
            return {"q2_k": "Q3_K", "q3_k_l": "Q5_K"}[preset]
        if not early:
            return None
        if preset in ("iq4_nl", "iq4_xs"):
            return None if self.imatrix else "Q5_K"
        if preset in ("q4_0", "q5_0"):
            return {"q4_0": "Q4_1", "q5_0": "Q5_1"}[preset] if self.imatrix else None
        return {"q2_k_s": "Q4_K", "q4_k_s": "Q5_K"}.get(preset)

    def _attention_output(self) -> str | None:
        if self.model.experts == 8:
            unchanged = ("q2_k_s", "q3_k_l", "q5_k_s", "q5_k_m", "q6_k", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
            return None if self.preset in unchanged else "Q5_K"
        chosen = {"q2_k": "Q3_K", "iq3_xxs": "IQ3_S", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K"}
        return chosen.get(self.preset)
