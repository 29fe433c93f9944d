"""Root-mean-square normalisation (arXiv:1910.07467)."""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Scale each row of ``x`` (..., size) to unit mean square, then by ``weight`` (size); keeps the dtype of ``x``.

    ``weight`` is in that dtype or in float32, in which case the product is rounded once; None is all ones.
    """
    if weight is None:
        return F.rms_norm(x, x.shape[-1:], None, eps)
    if weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
