"""Rotary position embedding (arXiv:2104.09864), in the half-split layout of Hugging Face checkpoints."""

import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` (tokens, heads, head_dim) by each token's angles: ``cos`` and ``sin`` (tokens, head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    left, right = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return rotated
