"""The experts of one row at the speed of the memory bus: of all weights only those of the chosen are read."""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.expert_gate import ExpertGate, ExpertWeights, combine_halves
from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.route import Routes

__all__ = ["row_down", "row_gate_up"]


def row_gate_up(
    x: torch.Tensor, routes: Routes, weights: ExpertWeights, gate: ExpertGate, out: torch.Tensor
) -> torch.Tensor:
    """Multiply one row by the first weight of each of its experts, and combine the halves of each product.

    Args:
        x: (1, hidden).
        routes: of the row.
        weights: (experts, 2 * inner, hidden).
        gate: between the halves.
        out: (per_token, inner).
    """
    (pairs, inner), columns = out.shape, x.shape[1]
    rows, block, warps = gate_up_shape()
    _row_gate_up[(triton.cdiv(inner, rows), pairs)](
        x, routes.experts, weights.weight, weights.bias, out, inner, columns, gate.alpha, gate.limit, ROWS=rows,
        BLOCK=block, BIAS=weights.bias is not None, KIND=gate.kind, num_warps=warps, **dependent(_row_gate_up),
    )  # fmt: skip
    return out


def row_down(x: torch.Tensor, routes: Routes, weights: ExpertWeights, out: torch.Tensor) -> torch.Tensor:
    """Multiply what each expert of one row came to by its second weight, and add the shares of all to the row.

    Args:
        x: (per_token, inner).
        routes: of the row.
        weights: (experts, hidden, inner).
        out: (1, hidden), added to; rounded once.
    """
    (pairs, columns), results = x.shape, out.shape[1]
    rows, block, warps = down_shape(columns)
    _row_down[(triton.cdiv(results, rows),)](
        x, routes.experts, routes.shares, weights.weight, weights.bias, out, results, columns, PAIRS=pairs, ROWS=rows,
        BLOCK=block, BIAS=weights.bias is not None, num_warps=warps, **dependent(_row_down),
    )  # fmt: skip
    return out


def gate_up_shape() -> tuple[int, int, int]:
    """Return rows of each half per program, columns at a time and warps, as measured."""
    return 4, 512, 4


def down_shape(columns: int) -> tuple[int, int, int]:
    """Return rows per program, columns at a time and warps, as measured; few columns are best all taken at once."""
    return 4, 1024 if columns <= 1024 else 512, 4


@triton.jit
def _row_gate_up(
    x, experts, weight, bias, out, inner, columns, alpha, limit,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    pair = tl.program_id(1)
    # A row of no token has no expert, and nobody reads what it comes to.
    expert = tl.maximum(tl.load(experts + pair), 0).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < inner)[:, None]
    first = weight + (expert * 2 * inner + row)[:, None] * columns + column[None, :]
    second = first + inner.to(tl.int64) * columns
    here = inside & (column < columns)[None, :]
    w = tl.load(first, mask=here, other=0.0, eviction_policy="evict_first")
    v = tl.load(second, mask=here, other=0.0, eviction_policy="evict_first")
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    other = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, columns, BLOCK):
        value = tl.load(x + start + column, mask=start + column < columns, other=0.0).to(tl.float32)
        ahead = inside & (start + BLOCK + column < columns)[None, :]
        next_w = tl.load(first + start + BLOCK, mask=ahead, other=0.0, eviction_policy="evict_first")
        next_v = tl.load(second + start + BLOCK, mask=ahead, other=0.0, eviction_policy="evict_first")
        total += w.to(tl.float32) * value[None, :]
        other += v.to(tl.float32) * value[None, :]
        w, v = next_w, next_v
    gate, up = tl.sum(total, 1), tl.sum(other, 1)
    if BIAS:
        gate += tl.load(bias + expert * 2 * inner + row, mask=row < inner, other=0.0).to(tl.float32)
        up += tl.load(bias + (expert * 2 + 1) * inner + row, mask=row < inner, other=0.0).to(tl.float32)
    result = combine_halves(gate, up, alpha, limit, KIND)
    tl.store(out + pair * inner + row, result.to(out.dtype.element_ty), mask=row < inner)


@triton.jit
def _row_down(
    x, experts, shares, weight, bias, out, results, columns,
    PAIRS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < results)[:, None]
    source = weight + row.to(tl.int64)[:, None] * columns + column[None, :]
    matrix = results.to(tl.int64) * columns
    blocks = tl.cdiv(columns, BLOCK)
    expert = tl.maximum(tl.load(experts), 0)
    w = tl.load(
        source + expert * matrix, mask=inside & (column < columns)[None, :], other=0.0, eviction_policy="evict_first"
    )  # fmt: skip
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    # Over the columns of all experts, one after the other, with the next weights always on their way.
    for step in range(PAIRS * blocks):
        pair, start = step // blocks, step % blocks * BLOCK
        next_pair, next_start = (step + 1) // blocks, (step + 1) % blocks * BLOCK
        more = next_pair < PAIRS
        expert = tl.maximum(tl.load(experts + next_pair, mask=more, other=0), 0)
        ahead = inside & (next_start + column < tl.where(more, columns, 0))[None, :]
        next_w = tl.load(source + expert * matrix + next_start, mask=ahead, other=0.0, eviction_policy="evict_first")
        here = start + column < columns
        value = tl.load(x + pair * columns + start + column, mask=here, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * (value * tl.load(shares + pair))[None, :]
        w = next_w
    result = tl.sum(total, 1)
    if BIAS:
        for pair in range(PAIRS):
            expert = tl.maximum(tl.load(experts + pair), 0)
            added = tl.load(bias + expert * results + row, mask=row < results, other=0.0).to(tl.float32)
            result += added * tl.load(shares + pair)
    result += tl.load(out + row, mask=row < results, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < results)
