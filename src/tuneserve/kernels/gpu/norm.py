"""RMS norm of each row (arXiv:1910.07467)."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two


def norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return what :func:`norm` does, in float32, rounded once."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
    """Scale each row of ``x`` (tokens, hidden) to unit mean square, then by ``weight`` (hidden), into ``out``."""
    assert x.is_contiguous()
    hidden = x.shape[1]
    block = power_of_two(hidden)
    _norm[(len(x),)](
        x, weight, out, hidden, eps, BLOCK=block, num_warps=min(16, max(1, block // 512)), **dependent(_norm)
    )
    return out


@triton.jit
def _norm(x, weight, out, hidden, eps, BLOCK: tl.constexpr, PDL: tl.constexpr):
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
    tl.store(out + place, (value * scale).to(out.dtype.element_ty), mask=inside)
