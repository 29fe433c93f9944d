"""Rotary position embedding (arXiv:2104.09864), in the half-split layout of Hugging Face checkpoints."""

import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first ``dim`` elements of each head of ``x`` (tokens, heads, head_dim) by each token's angles.

    ``cos`` and ``sin`` are (tokens, 1, dim): the same angles in both halves, ``sin`` negated in the first.
    """
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat((rotate(x[..., :dim], cos, sin), x[..., dim:]), dim=-1)
    return torch.addcmul(x * cos, x.roll(dim // 2, -1), sin)
