"""A few rows times a weight matrix, on the matrix units, each weight read once.

The products of 2 to 32 rows are bound by the reading of the weights. A program takes some rows of the weight matrix
over all its columns.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.matvec import matvec_reference

__all__ = ["skinny", "skinny_reference"]

skinny_reference = matvec_reference


def skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    out: torch.Tensor,
) -> torch.Tensor:
    """Multiply up to 32 rows; accumulates in float32 and rounds once.

    Args:
        x: (count, columns), ``count`` at most 32.
        weight: (rows, columns), contiguous; where ``gated``, the first half of the rows is the gate.
        bias: (rows), added to the product.
        residual: (count, rows of the result), added to the result.
        out: (count, rows of the result), may be ``residual``.
    """
    count, (rows, columns) = len(x), weight.shape
    assert count <= 32
    results = rows // 2 if gated else rows
    block_rows, block, warps, stages = shape_of(gated)
    _skinny[(triton.cdiv(results, block_rows),)](
        x, weight, bias, residual, out, count, results, columns,
        ROWS=block_rows, BLOCK=block, COUNT=16 if count <= 16 else 32, BIAS=bias is not None,
        RESIDUAL=residual is not None, GATED=gated, num_warps=warps, num_stages=stages, **dependent(_skinny),
    )  # fmt: skip
    return out


def shape_of(gated: bool) -> tuple[int, int, int, int]:
    """Return rows per program, columns at a time, warps and stages, as measured."""
    return 64, 128 if gated else 256, 4, 4


@triton.jit
def _skinny(
    x, weight, bias, residual, out, count, results, columns,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    token = tl.arange(0, COUNT)
    inside = (row < results)[:, None]
    first = weight + row.to(tl.int64)[:, None] * columns + column[None, :]
    second = first + results.to(tl.int64) * columns
    values = x + token[None, :] * columns + column[:, None]
    total = tl.zeros((ROWS, COUNT), tl.float32)
    other = tl.zeros((ROWS, COUNT), tl.float32)
    for start in range(0, columns, BLOCK):
        here = start + column < columns
        value = tl.load(values + start, mask=here[:, None] & (token < count)[None, :], other=0.0)
        w = tl.load(first + start, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
        total = tl.dot(w, value, total)
        if GATED:
            v = tl.load(second + start, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
            other = tl.dot(v, value, other)
    if BIAS:
        total += tl.load(bias + row, mask=row < results, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if BIAS:
            other += tl.load(bias + results + row, mask=row < results, other=0.0).to(tl.float32)[:, None]
        total = total / (1.0 + tl.exp(-total)) * other
    place = token[None, :] * results + row[:, None]
    valid = inside & (token < count)[None, :]
    if RESIDUAL:
        total += tl.load(residual + place, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=valid)
