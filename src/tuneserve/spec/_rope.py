"""Rotary positions, in both forms in which configurations state them."""

import math

from tuneserve.errors import SpecError, UnsupportedModelError
from tuneserve.spec._fields import Fields
from tuneserve.spec._positions import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_rope(fields: Fields, head_dim: int, context_length: int, default_theta: float = 10000.0) -> RopeSpec:
    """Return the positions of all layers, from ``rope_scaling`` and ``rope_theta`` or from ``rope_parameters``.

    Raises:
        SpecError: a kind of scaling that the decoder does not implement, or only a part of each head is rotated.
    """
    own = rope_section(fields)
    if partial_factor(fields, own) != 1.0:
        raise UnsupportedModelError(
            "partial_rotary_factor in config.json is not 1, which this family has no use for; "
            "download or save the model again."
        )
    return rope_of(fields, own, head_dim, context_length, default_theta, _KINDS)


def rope_section(fields: Fields) -> Fields:
    """Return what is stated of the positions, in either form."""
    return fields.section("rope_scaling") or fields.section("rope_parameters") or Fields({})


def partial_factor(fields: Fields, own: Fields) -> float:
    """Return which part of each head is rotated."""
    return own.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))


def rope_of(
    fields: Fields, own: Fields, dim: int, context_length: int, default_theta: float, kinds: tuple[str, ...]
) -> RopeSpec:
    """Return the positions that the section ``own`` states, of ``dim`` elements of each head.

    Raises:
        SpecError: the scaling is none of ``kinds``, or a field of it is malformed.
    """
    if dim % 2 or dim == 0:
        raise SpecError(
            f"config.json has {dim} elements of each head rotated, which cannot be paired; use another model."
        )
    theta = own.number("rope_theta", fields.number("rope_theta", default_theta))
    return RopeSpec(theta=theta, dim=dim, scaling=_scaling(fields, own, theta, dim, context_length, kinds))


def _scaling(
    fields: Fields, own: Fields, theta: float, dim: int, context_length: int, kinds: tuple[str, ...]
) -> RopeScaling | None:
    kind = own.text("rope_type", own.text("type", "default"))
    if kind not in kinds:
        raise UnsupportedModelError(
            f"the rope scaling {kind[:40]!r} is not in the native engine yet; use another engine."
        )
    if kind == "linear":
        return LinearScaling(factor=own.number("factor"))
    if kind == "proportional":
        pairs = int(own.number("partial_rotary_factor", 1.0) * dim // 2)
        return ProportionalScaling(pairs=pairs, factor=own.number("factor", 1.0))
    if kind in ("default", "dynamic"):
        # Dynamic scaling begins beyond max_position_embeddings, and that far no context goes here.
        return None
    original = fields.size(
        "original_max_position_embeddings", own.size("original_max_position_embeddings", context_length)
    )
    if kind == "llama3":
        low, high = own.number("low_freq_factor"), own.number("high_freq_factor")
        if low >= high:
            raise SpecError("low_freq_factor is not below high_freq_factor in config.json; download the model again.")
        return Llama3Scaling(factor=own.number("factor"), low=low, high=high, original_length=original)
    factor = own.number("factor", context_length / original)
    if kind == "yarn":
        if theta <= 1:
            raise SpecError("rope_theta in config.json is not above 1, which yarn needs; download the model again.")
        return _yarn(own, factor, original)
    return LongRopeScaling(
        short=own.numbers("short_factor", dim // 2),
        long=own.numbers("long_factor", dim // 2),
        original_length=original,
        attention_factor=own.number("attention_factor", _longrope_attention(factor, original)),
    )


def _yarn(own: Fields, factor: float, original: int) -> YarnScaling:
    names = own.names()
    attention = _mscale(factor, 1.0)
    if {"mscale", "mscale_all_dim"} <= names:
        attention = _mscale(factor, own.number("mscale")) / _mscale(factor, own.number("mscale_all_dim"))
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=own.number("beta_fast", 32.0),
        beta_slow=own.number("beta_slow", 1.0),
        attention_factor=own.number("attention_factor", attention),
        truncate=own.flag("truncate", True),
    )


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope_attention(factor: float, original: int) -> float:
    return 1.0 if factor <= 1 or original == 1 else math.sqrt(1 + math.log(factor) / math.log(original))
