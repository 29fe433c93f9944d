"""Rotary position embedding (arXiv:2104.09864), in the half-split layout of Hugging Face checkpoints."""

import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` (tokens, heads, head_dim) by each token's angles.

    ``cos`` and ``sin`` are (tokens, 1, head_dim): the same angles in both halves, ``sin`` negated in the first.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
