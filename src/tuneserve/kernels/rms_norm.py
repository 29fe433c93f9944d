"""Root-mean-square normalisation (arXiv:1910.07467)."""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale each row of ``x`` (tokens, hidden) to unit mean square, then by ``weight`` (hidden); keeps the dtype."""
    return F.rms_norm(x, weight.shape, weight, eps)
