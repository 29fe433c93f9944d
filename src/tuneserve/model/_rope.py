"""Rotary frequencies and the tables made of them."""

import math

import torch

from tuneserve.spec import ModelSpec, RopeScaling


def rope_tables(
    spec: ModelSpec, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and signed sin of every position below ``length``, as ``rotate`` takes them, computed in float32.

    Each is (length, 1, head_dim).
    """
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(spec))
    cos, sin = angles.cos(), angles.sin()
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return cos.unsqueeze(1).to(dtype=dtype, device=device), sin.unsqueeze(1).to(dtype=dtype, device=device)


def frequencies(spec: ModelSpec) -> torch.Tensor:
    """Return the angle per position of each pair of dimensions, float32 (head_dim / 2)."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    plain = 1.0 / spec.rope_theta**exponents
    scaling = spec.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    return _llama3(plain, scaling)


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    turns = scaling.original_length * plain / (2 * math.pi)
    blend = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return blend * plain + (1 - blend) * plain / scaling.factor
