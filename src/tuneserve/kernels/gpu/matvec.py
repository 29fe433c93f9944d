"""One row times a weight matrix, at the speed of the memory bus, with the gate or the residual that follows fused in.

A program takes eight rows of the matrix, which share what it reads of ``x``, and has the next loads always in flight.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent


def matvec_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """Return what :func:`matvec` does, in float32, rounded once."""
    row = x.float() if norm is None else F.rms_norm(x.float(), x.shape[-1:], norm.float(), eps)
    product = F.linear(row, weight.float(), None if bias is None else bias.float())
    if gated:
        first, second = product.chunk(2, dim=-1)
        product = F.silu(first) * second
    return (product if residual is None else product + residual.float()).to(x.dtype)


def matvec(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    out: torch.Tensor,
) -> torch.Tensor:
    """Multiply one row; accumulates in float32 and rounds once.

    Args:
        x: (1, columns).
        weight: (rows, columns), contiguous; where ``gated``, the first half of the rows is the gate, and the result is
            ``silu(first) * second``.
        norm: (columns), weight of an RMS norm of ``x``, whose mean square is a single number and applied at the end.
        bias: (rows), added to the product.
        residual: (1, rows of the result), added to the result.
        out: (1, rows of the result), may be ``residual``.
    """
    rows, columns = weight.shape
    results = rows // 2 if gated else rows
    per_program, block, warps = shape_of(gated)
    _matvec[(triton.cdiv(results, per_program),)](
        x, weight, norm, bias, residual, out, results, columns, eps,
        ROWS=per_program, BLOCK=block, NORM=norm is not None, BIAS=bias is not None, RESIDUAL=residual is not None,
        GATED=gated, num_warps=warps, **dependent(_matvec),
    )  # fmt: skip
    return out


def shape_of(gated: bool) -> tuple[int, int, int]:
    """Return rows per program, columns at a time and warps, as measured."""
    return 4 if gated else 8, 512, 4


@triton.jit
def _matvec(
    x, weight, norm, bias, residual, out, results, columns, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < results)[:, None]
    first = weight + row.to(tl.int64)[:, None] * columns + column[None, :]
    second = first + results.to(tl.int64) * columns
    # The first weights are on their way before the kernel that makes ``x`` is done, and always the next ones.
    here = column < columns
    w = tl.load(first, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
    if GATED:
        v = tl.load(second, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
    if PDL:
        gdc_wait()
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    other = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        here = start + column < columns
        value = tl.load(x + start + column, mask=here, other=0.0).to(tl.float32)
        if NORM:
            squares += value * value
            value *= tl.load(norm + start + column, mask=here, other=0.0).to(tl.float32)
        ahead = inside & (start + BLOCK + column < columns)[None, :]
        next_w = tl.load(first + start + BLOCK, mask=ahead, other=0.0, eviction_policy="evict_first")
        total += w.to(tl.float32) * value[None, :]
        w = next_w
        if GATED:
            next_v = tl.load(second + start + BLOCK, mask=ahead, other=0.0, eviction_policy="evict_first")
            other += v.to(tl.float32) * value[None, :]
            v = next_v
    scale = 1.0
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / columns + eps)
    result = tl.sum(total, 1) * scale
    if BIAS:
        result += tl.load(bias + row, mask=row < results, other=0.0).to(tl.float32)
    if GATED:
        up = tl.sum(other, 1) * scale
        if BIAS:
            up += tl.load(bias + results + row, mask=row < results, other=0.0).to(tl.float32)
        result = result / (1.0 + tl.exp(-result)) * up
    if RESIDUAL:
        result += tl.load(residual + row, mask=row < results, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < results)
