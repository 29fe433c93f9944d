"""A few rows times a weight matrix, on the matrix units, each weight read once.

The products of 2 to 32 rows are bound by the reading of the weights. A program takes some rows of the weight matrix
over all its columns.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.activation import activated
from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.lora import finish_tile, piece_ends, shrink_shape, shrink_tile
from tuneserve.kernels.gpu.lora_rows import span_of
from tuneserve.kernels.gpu.matvec import LoraCall, matvec_reference
from tuneserve.spec import Activation

__all__ = ["skinny", "skinny_reference"]

skinny_reference = matvec_reference

# Programs that shrink, fewer than the multiprocessors that the smallest products leave idle, and columns of the expand
# at a time.
_SHRINKERS = 32
_EXPANDED = 64


def skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    activation: Activation = "silu",
    lora: LoraCall | None = None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Multiply up to 32 rows; accumulates in float32 and rounds once.

    Args:
        x: (count, columns), ``count`` at most 32.
        weight: (rows, columns), each row contiguous; where ``gated``, the first half of the rows is the gate.
        bias: (rows), added to the product.
        residual: (count, rows of the result), added to the result.
        activation: of the gate, where ``gated``.
        lora: added to the product, before the gate. The first programs of the launch shrink, while the others multiply
            by ``weight``.
        out: (count, rows of the result), may be ``residual``.
    """
    count, (rows, columns) = len(x), weight.shape
    assert count <= 32
    results = rows // 2 if gated else rows
    block_rows, block, warps, stages = shape_of(gated)
    adapters: tuple[Any, ...] = (None,) * 13
    shape: dict[str, Any] = dict.fromkeys(("SHRUNK", "RANK", "PADDED", "TILE", "PART"), 1)
    if lora is not None:
        mine, each = lora.weights, lora.rows
        shape = shrink_shape(mine)
        adapters = (
            each.tile_of, each.order, each.tiles, each.counts, mine.a, mine.b, mine.ranks, each.shares, each.shrunk,
            each.done, lora.arrived, *piece_ends(mine, rows),
        )  # fmt: skip
    shrinkers = 0 if lora is None else _SHRINKERS
    span = span_of(columns)
    _skinny[(shrinkers + triton.cdiv(results, block_rows),)](
        x, weight, weight.stride(0), bias, residual, out, count, results, columns, *adapters, LORA=lora is not None,
        SHRINKERS=_SHRINKERS, SHARES=triton.cdiv(columns, span), SPAN=span, EXPANDED=_EXPANDED, **shape,
        ROWS=block_rows, BLOCK=block, COUNT=16 if count <= 16 else 32, BIAS=bias is not None,
        RESIDUAL=residual is not None, GATED=gated, ACTIVATION=activation, num_warps=warps, num_stages=stages,
        **dependent(_skinny),
    )  # fmt: skip
    return out


def shape_of(gated: bool) -> tuple[int, int, int, int]:
    """Return rows per program, columns at a time, warps and stages, as measured."""
    return 64, 128 if gated else 256, 4, 4


@triton.jit
def _skinny(
    x, weight, stride, bias, residual, out, count, results, columns,
    tile_of, order, tiles, counts, a, b, ranks, shares, shrunk, done, arrived, first_end, second_end,
    LORA: tl.constexpr, SHRINKERS: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, SHARES: tl.constexpr,
    EXPANDED: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    if LORA:
        used = tl.load(counts)
        if program < SHRINKERS:
            for item in range(program, used * SHARES, SHRINKERS):
                shrink_tile(
                    x, a, ranks, order, tiles, shares, count, columns, item // SHARES, item % SHARES, SHRUNK, RANK,
                    PADDED, TILE, SPAN, PART,
                )  # fmt: skip
                if finish_tile(order, tiles, shares, shrunk, done, count, item // SHARES, SHRUNK, PADDED, TILE, SHARES):
                    tl.debug_barrier()
                    tl.atomic_add(arrived, 1, sem="release")
            return
        program -= SHRINKERS
    row = program * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    token = tl.arange(0, COUNT)
    inside = (row < results)[:, None]
    first = weight + row.to(tl.int64)[:, None] * stride + column[None, :]
    second = first + results.to(tl.int64) * stride
    values = x + token[None, :] * columns + column[:, None]
    total = tl.zeros((ROWS, COUNT), tl.float32)
    other = tl.zeros((ROWS, COUNT), tl.float32)
    if LORA:
        owner = tl.load(tile_of + token, mask=token < count, other=-1)
        width = results.to(tl.int64) * (2 if GATED else 1)
        w0 = _columns(b, tiles, row, row < results, 0, used, width, RANK, EXPANDED)
        if GATED:
            v0 = _columns(b, tiles, results + row, row < results, 0, used, width, RANK, EXPANDED)
    for start in range(0, columns, BLOCK):
        here = start + column < columns
        value = tl.load(values + start, mask=here[:, None] & (token < count)[None, :], other=0.0)
        w = tl.load(first + start, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
        total = tl.dot(w, value, total)
        if GATED:
            v = tl.load(second + start, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
            other = tl.dot(v, value, other)
    if LORA and used > 0:
        while tl.atomic_add(arrived, 0, sem="acquire") < used:
            pass
        if GATED:
            total = _expand(
                total, w0, owner, row, row < results, 0, b, tiles, shrunk, used, width, SHRUNK, RANK, COUNT, EXPANDED
            )
            other = _expand(
                other, v0, owner, results + row, row < results, 1, b, tiles, shrunk, used, width, SHRUNK, RANK, COUNT,
                EXPANDED,
            )  # fmt: skip
        else:
            real = tl.minimum(row, results - 1)
            piece_of = (real >= first_end).to(tl.int32) + (real >= second_end).to(tl.int32)
            for piece in range(tl.min(piece_of, 0), tl.max(piece_of, 0) + 1):
                mine = (row < results) & (piece_of == piece)
                total = _expand(
                    total, tl.where(mine[:, None], w0, 0.0).to(w0.dtype), owner, row, mine, piece, b, tiles, shrunk,
                    used, width, SHRUNK, RANK, COUNT, EXPANDED,
                )  # fmt: skip
    if BIAS:
        total += tl.load(bias + row, mask=row < results, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if BIAS:
            other += tl.load(bias + results + row, mask=row < results, other=0.0).to(tl.float32)[:, None]
        total = activated(total, ACTIVATION) * other
    place = token[None, :] * results + row[:, None]
    valid = inside & (token < count)[None, :]
    if RESIDUAL:
        total += tl.load(residual + place, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _columns(b, tiles, row, mine, first, used, rows, RANK: tl.constexpr, EXPANDED: tl.constexpr):
    """Return some columns of the expands of all tiles side by side, (rows of a program, EXPANDED)."""
    place = first + tl.arange(0, EXPANDED)
    tile = place // RANK
    slot = tl.load(tiles + tile * 3 + 2, mask=tile < used, other=0).to(tl.int64)
    source = b + (slot[None, :] * rows + row[:, None]) * RANK + (place % RANK)[None, :]
    return tl.load(source, mask=mine[:, None] & (tile < used)[None, :], other=0.0)


@triton.jit
def _expand(
    total, w, owner, row, mine, piece, b, tiles, shrunk, used, rows,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, COUNT: tl.constexpr, EXPANDED: tl.constexpr,
):  # fmt: skip
    """Add the deltas of all tokens: a product with as many columns for each tile as the rank has numbers."""
    token = tl.arange(0, COUNT)
    for first in range(0, used * RANK, EXPANDED):
        place = first + tl.arange(0, EXPANDED)
        own = tl.load(
            shrunk + token[None, :] * SHRUNK + piece * RANK + (place % RANK)[:, None],
            mask=(place // RANK)[:, None] == owner[None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        total = tl.dot(w, own, total)
        w = _columns(b, tiles, row, mine, first + EXPANDED, used, rows, RANK, EXPANDED)
    return total
