"""Rotary positions of the model in a GGUF file, in the words of a Hugging Face configuration."""

import math
from collections.abc import Mapping
from typing import Any

from tuneserve.checkpoint import GgufFile, read_rows
from tuneserve.errors import SourceError
from tuneserve.spec import Fields

_THETA = 10000.0
_MAX_FACTORS = 4096
# What Llama 3 was stretched with; only the factor differs between the sizes.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def rope_fields(file: GgufFile, family: str, fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``rope_theta`` and, where there is scaling, ``rope_scaling`` and what goes with it.

    Raises:
        SourceError: the factors in the file's tensors are of no known kind.
        SpecError: a field is malformed, or the kind of scaling is not known.
    """
    theta = fields.number("rope.freq_base", _THETA)
    found: dict[str, Any] = {"rope_theta": theta}
    rotated = fields.size("rope.dimension_count", config["head_dim"])
    if family == "gemma3_text":
        found["rope_local_base_freq"] = fields.number("rope.freq_base_swa", _THETA)
    if rotated != config["head_dim"]:
        found["partial_rotary_factor"] = rotated / config["head_dim"]
    if family == "phi3":
        original = fields.size("rope.scaling.original_context_length", config["max_position_embeddings"])
        found["original_max_position_embeddings"] = original
    scaling = _scaling(file, fields, theta, rotated)
    if scaling is not None:
        found["rope_scaling"] = scaling | ({"truncate": False} if family == "gpt_oss" else {})
    return found


def _scaling(file: GgufFile, fields: Fields, theta: float, rotated: int) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3(file, theta, rotated)
    if "rope_factors_long.weight" in file.tensors:
        long, short = (_values(file, f"rope_factors_{name}.weight") for name in ("long", "short"))
        return {"rope_type": "longrope", "type": "longrope", "long_factor": long, "short_factor": short}
    kind = fields.text("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise SourceError(
            f"{file.paths[0]} stretches its rotary positions by {kind[:40]!r} without the factors for it; "
            "use the model's original directory."
        )
    if kind == "linear":
        return {"rope_type": kind, "factor": fields.number("rope.scaling.factor")}
    if kind == "yarn":
        return _yarn(fields)
    return None


def _yarn(fields: Fields) -> dict[str, Any]:
    factor = fields.number("rope.scaling.factor")
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.size("rope.scaling.original_context_length"),
        "beta_fast": fields.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": fields.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    # On top of what llama.cpp derives from the factor, as Transformers does.
    attention = fields.number("rope.scaling.attn_factor", 1.0)
    if attention != 1.0:
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return scaling


def _llama3(file: GgufFile, theta: float, rotated: int) -> dict[str, Any]:
    """Find the parameters from the factors they led to, which is all that the file holds of them."""
    given = _values(file, "rope_freqs.weight")
    factor, fits = max(given), theta >= 1 and len(given) == rotated // 2
    for original in (_ORIGINAL, *(1 << power for power in range(5, 21))) if fits else ():
        expected = [_llama3_factor(theta ** (-2 * i / rotated), factor, original) for i in range(len(given))]
        if all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(given, expected, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": original,
            }
    raise SourceError(
        f"{file.paths[0]} stretches its rotary positions in a way that is not Llama 3's; "
        "use the model's original directory."
    )


def _llama3_factor(frequency: float, factor: float, original: int) -> float:
    turns = original * frequency / (2 * math.pi)
    smooth = min(max((turns - _LOW) / (_HIGH - _LOW), 0.0), 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _values(file: GgufFile, name: str) -> list[float]:
    tensor = file.tensors.get(name)
    if tensor is None or len(tensor.shape) != 1 or tensor.shape[0] > _MAX_FACTORS:
        raise SourceError(f"{file.paths[0]} lacks the rotary factors {name!r}; download it again.")
    _, values = next(read_rows(tensor, 0, 1))
    found = [round(float(value), 6) for value in values[0]]
    if not all(1e-6 <= value < 1e6 for value in found):
        raise SourceError(f"the rotary factors {name!r} in {file.paths[0]} are not usable; download it again.")
    return found
