"""RMS norm of each row (arXiv:1910.07467), added to another where there is one."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two


def norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what :func:`norm` does, in float32, rounded once."""
    normed = F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps)
    return (normed if residual is None else normed + residual.float()).to(x.dtype)


def norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale each row of ``x`` (tokens, hidden) to unit mean square, then by ``weight`` (hidden), into ``out``.

    Where there is a ``residual`` (tokens, hidden), which may be ``out``, the result is added to it.
    """
    assert x.is_contiguous()
    hidden = x.shape[1]
    block = power_of_two(hidden)
    _norm[(len(x),)](
        x, weight, residual, out, hidden, eps, RESIDUAL=residual is not None, BLOCK=block,
        num_warps=min(16, max(1, block // 512)), **dependent(_norm),
    )  # fmt: skip
    return out


@triton.jit
def _norm(x, weight, residual, out, hidden, eps, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    place = tl.program_id(0).to(tl.int64) * hidden + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value *= 1.0 / tl.sqrt(tl.sum(value * value, 0) / hidden + eps)
    value *= scale
    if RESIDUAL:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
