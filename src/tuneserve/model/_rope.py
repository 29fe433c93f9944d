"""Rotary frequencies and the tables made of them."""

import math

import torch

from tuneserve.spec import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    QueryScaling,
    RopeSpec,
    YarnScaling,
)


def rope_tables(
    rope: RopeSpec, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and signed sin of every position below ``length``, as ``rotate`` takes them, computed in float32.

    Each is (length, 1, rope.dim).
    """
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(rope, length))
    scaling = rope.scaling
    factor = scaling.attention_factor if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0
    cos, sin = angles.cos() * factor, angles.sin() * factor
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return cos.unsqueeze(1).to(dtype=dtype, device=device), sin.unsqueeze(1).to(dtype=dtype, device=device)


def half_tables(rope: RopeSpec, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of each angle once, float32 (length, rope.dim / 2)."""
    cos, sin = rope_tables(rope, length, torch.float32, device)
    half = rope.dim // 2
    return cos[:, 0, half:].contiguous(), sin[:, 0, half:].contiguous()


def query_scales(scaling: QueryScaling, length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return what the queries of every position below ``length`` are multiplied by, (length, 1, 1)."""
    periods = torch.arange(length, dtype=torch.int64) // scaling.original_length
    scales = 1 + scaling.beta * torch.log(1 + periods.float())
    return scales.view(-1, 1, 1).to(dtype=dtype, device=device)


def frequencies(rope: RopeSpec, length: int) -> torch.Tensor:
    """Return the angle per position of each pair of elements, float32 (rope.dim / 2), for contexts of ``length``."""
    powers = rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim)
    match rope.scaling:
        case None:
            return 1.0 / powers
        case LinearScaling(factor=factor):
            return 1.0 / powers / factor
        case Llama3Scaling() as scaling:
            return _llama3(1.0 / powers, scaling)
        case YarnScaling() as scaling:
            return _yarn(powers, rope, scaling)
        case LongRopeScaling() as scaling:
            factors = scaling.long if length > scaling.original_length else scaling.short
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * powers)
        case ProportionalScaling(pairs=pairs, factor=factor):
            return torch.where(torch.arange(rope.dim // 2) < pairs, 1.0 / powers / factor, 0.0)


def _llama3(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    turns = scaling.original_length * plain / (2 * math.pi)
    blend = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return blend * plain + (1 - blend) * plain / scaling.factor


def _yarn(powers: torch.Tensor, rope: RopeSpec, scaling: YarnScaling) -> torch.Tensor:
    def pair_turning(times: float) -> float:
        return rope.dim * math.log(scaling.original_length / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair_turning(scaling.beta_fast), pair_turning(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    ramp = (torch.arange(rope.dim // 2, dtype=torch.float32) - first) / ((last - first) or 0.001)
    divided = ramp.clamp(0, 1)
    return divided / (scaling.factor * powers) + (1 - divided) / powers
