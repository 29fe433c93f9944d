"""Rotary positions in GGUF: the metadata, and the tensors of factors that llama.cpp reads beside it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneserve.artifacts.gguf._header import Value
from tuneserve.errors import SpecError
from tuneserve.spec import Fields

if TYPE_CHECKING:
    import torch

_THETA = 10000.0
_OLD_NAMES = {"su": "longrope"}


@dataclass(frozen=True)
class Factors:
    """A tensor of ``count`` factors in float32; :meth:`compute` makes it."""

    count: int
    compute: "Callable[[], torch.Tensor]"


@dataclass(frozen=True)
class Rope:
    """``metadata`` lacks the prefix of the architecture."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, Factors]


def read_rope(config: Mapping[str, Any], head_dim: int, *, longrope: bool) -> Rope:
    """Read ``rope_parameters`` (Transformers 5) or ``rope_theta`` and ``rope_scaling`` of a configuration.

    ``longrope`` says whether the architecture has it in llama.cpp. Of nested parameters those of full attention are
    read, and the theta of sliding attention beside them.

    Raises:
        SpecError: a kind of scaling, or a detail of one, that llama.cpp does not have.
    """
    fields = Fields(config)
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    where = Fields({"rope": given}).section("rope")
    assert where is not None
    metadata: dict[str, Value] = {}
    if (full := where.section("full_attention")) is not None:
        sliding = where.section("sliding_attention")
        if sliding is not None:
            if sliding.text("rope_type", "default") != "default":
                raise SpecError("llama.cpp does not scale the rotary positions of sliding attention; use merged_16bit.")
            metadata["rope.freq_base_swa"] = sliding.number("rope_theta", _THETA)
        where = full
    elif (local := config.get("rope_local_base_freq")) is not None:
        metadata["rope.freq_base_swa"] = Fields({"rope_local_base_freq": local}).number("rope_local_base_freq")
    theta = where.number("rope_theta", fields.number("rope_theta", _THETA))
    metadata["rope.freq_base"] = theta
    partial = where.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    rotated = int(head_dim * partial)
    if not 0 < rotated <= head_dim or rotated % 2:
        raise SpecError(
            f"partial_rotary_factor in config.json is {partial}, which rotates {rotated} of {head_dim} elements; "
            "download the model again."
        )
    metadata["rope.dimension_count"] = rotated
    kind = where.text("rope_type", where.text("type", "default"))
    kind = _OLD_NAMES.get(kind, kind)
    tensors: dict[str, Factors] = {}
    if kind == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": where.number("factor")}
    elif kind == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(where, theta, rotated)
    elif kind == "yarn":
        metadata |= _yarn(where, fields)
    elif kind == "longrope" and longrope:
        metadata |= _longrope(where, fields)
        for name in ("long", "short"):
            tensors[f"rope_factors_{name}.weight"] = _factors(given, name, rotated)
    elif kind != "default":
        raise SpecError(
            f"the rope scaling {kind[:40]!r} cannot be said in a GGUF file of this family; "
            "export as merged_16bit and use an engine that reads it."
        )
    return Rope(metadata, tensors)


def _llama3_factors(where: Fields, theta: float, rotated: int) -> Factors:
    """Return what each frequency is divided by; the rule is in Llama 3.1's reference code."""
    factor, low, high = (where.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = where.size("original_max_position_embeddings")
    if low >= high:
        raise SpecError("low_freq_factor is not below high_freq_factor in config.json; download the model again.")

    def compute() -> "torch.Tensor":
        import torch

        frequencies = 1.0 / theta ** (torch.arange(0, rotated, 2, dtype=torch.float32) / rotated)
        turns = original * frequencies / (2 * math.pi)
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return 1 / ((1 - smooth) / factor + smooth)

    return Factors(rotated // 2, compute)


def _yarn(where: Fields, fields: Fields) -> dict[str, Value]:
    """Of ``truncate: false`` (gpt-oss) llama.cpp knows nothing: it always rounds the range of the ramp."""
    factor = where.number("factor")
    scales = [_mscale(factor, where.number(name)) for name in ("mscale", "mscale_all_dim") if name in where.names()]
    attention = scales[0] / scales[1] if len(scales) == 2 else _mscale(factor)
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": where.size(
            "original_max_position_embeddings", fields.size("max_position_embeddings")
        ),
        "rope.scaling.yarn_beta_fast": where.number("beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": where.number("beta_slow", 1.0),
        # On top of what llama.cpp derives from the factor itself.
        "rope.scaling.attn_factor": where.number("attention_factor", attention) / _mscale(factor),
    }


def _mscale(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(where: Fields, fields: Fields) -> dict[str, Value]:
    context = fields.size("max_position_embeddings")
    original = where.size("original_max_position_embeddings", fields.size("original_max_position_embeddings", context))
    if original < 2:
        raise SpecError("original_max_position_embeddings in config.json is 1; download the model again.")
    stretch = where.number("factor", context / original)
    attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": where.number("attention_factor", attention),
    }


def _factors(given: Mapping[str, Any], name: str, rotated: int) -> Factors:
    values = given.get(f"{name}_factor")
    if not isinstance(values, list) or len(values) != rotated // 2 or not all(map(_is_factor, values)):
        raise SpecError(f"{name}_factor in config.json is not a list of {rotated // 2} factors; download it again.")
    return Factors(len(values), partial(_float32, values))


def _float32(values: list[float]) -> "torch.Tensor":
    import torch

    return torch.tensor(values, dtype=torch.float32)


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
