"""A few rows times a weight matrix, on the matrix units, each weight read once.

The products of 2 to 32 rows are bound by the reading of the weights. A program takes some rows of the weight matrix
over all its columns.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.lora import SPAN, piece_ends, shrink_shape, shrink_tile
from tuneserve.kernels.gpu.matvec import LoraCall, matvec_reference

__all__ = ["skinny", "skinny_reference"]

skinny_reference = matvec_reference

# Programs that shrink, fewer than the multiprocessors that the smallest products leave idle, and columns of the expand
# at a time.
_SHRINKERS = 32
_EXPANDED = 128


def skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    lora: LoraCall | None = None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Multiply up to 32 rows; accumulates in float32 and rounds once.

    Args:
        x: (count, columns), ``count`` at most 32.
        weight: (rows, columns), contiguous; where ``gated``, the first half of the rows is the gate.
        bias: (rows), added to the product.
        residual: (count, rows of the result), added to the result.
        lora: added to the product, before the gate. The first programs of the launch shrink, while the others multiply
            by ``weight``.
        out: (count, rows of the result), may be ``residual``.
    """
    count, (rows, columns) = len(x), weight.shape
    assert count <= 32
    results = rows // 2 if gated else rows
    block_rows, block, warps, stages = shape_of(gated)
    adapters, rank, shrunk = (None,) * 11, 1, 1
    if lora is not None:
        mine, each = lora.weights, lora.rows
        rank, shrunk = mine.rank, mine.a.shape[1]
        adapters = (
            each.slots, each.order, each.tiles, each.count, mine.a, mine.b, mine.ranks, each.shares, lora.arrived,
            *piece_ends(mine, rows),
        )  # fmt: skip
    shrinkers = 0 if lora is None else _SHRINKERS
    _skinny[(shrinkers + triton.cdiv(results, block_rows),)](
        x, weight, bias, residual, out, count, results, columns, *adapters, LORA=lora is not None,
        SHRINKERS=_SHRINKERS, SHRUNK=shrunk, RANK=rank, SHARES=triton.cdiv(columns, SPAN), EXPANDED=_EXPANDED,
        **shrink_shape(shrunk),
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
    slots, order, tiles, tile_count, a, b, ranks, shares, arrived, first_end, second_end,
    LORA: tl.constexpr, SHRINKERS: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, SHARES: tl.constexpr,
    EXPANDED: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    if LORA:
        if program < SHRINKERS:
            for item in range(program, tl.load(tile_count) * SHARES, SHRINKERS):
                shrink_tile(
                    x, a, ranks, order, tiles, shares, count, columns, item // SHARES, item % SHARES, SHRUNK, RANK,
                    PADDED, TILE, SPAN, PART,
                )  # fmt: skip
            tl.debug_barrier()
            tl.atomic_add(arrived, 1, sem="release")
            return
        program -= SHRINKERS
    row = program * ROWS + tl.arange(0, ROWS)
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
    if LORA and tl.load(tile_count) > 0:
        while tl.atomic_add(arrived, 0, sem="acquire") < SHRINKERS:
            pass
        if GATED:
            total = _expand(
                total,
                row,
                row < results,
                0,
                slots,
                b,
                ranks,
                shares,
                count,
                results * 2,
                SHRUNK,
                RANK,
                SHARES,
                COUNT,
                EXPANDED,
            )
            other = _expand(
                other,
                results + row,
                row < results,
                1,
                slots,
                b,
                ranks,
                shares,
                count,
                results * 2,
                SHRUNK,
                RANK,
                SHARES,
                COUNT,
                EXPANDED,
            )
        else:
            real = tl.minimum(row, results - 1)
            piece_of = (real >= first_end).to(tl.int32) + (real >= second_end).to(tl.int32)
            for piece in range(tl.min(piece_of, 0), tl.max(piece_of, 0) + 1):
                mine = (row < results) & (piece_of == piece)
                total = _expand(
                    total,
                    row,
                    mine,
                    piece,
                    slots,
                    b,
                    ranks,
                    shares,
                    count,
                    results,
                    SHRUNK,
                    RANK,
                    SHARES,
                    COUNT,
                    EXPANDED,
                )
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


@triton.jit
def _expand(
    total, row, mine, piece, slots, b, ranks, shares, count, rows,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, SHARES: tl.constexpr, COUNT: tl.constexpr, EXPANDED: tl.constexpr,
):  # fmt: skip
    """Add the deltas of all tokens, as a product with as many columns for each token as the rank has numbers."""
    token = tl.arange(0, COUNT)
    for first in range(0, count * RANK, EXPANDED):
        place = first + tl.arange(0, EXPANDED)
        owner, lane = place // RANK, place % RANK
        slot = tl.load(slots + owner, mask=owner < count, other=-1).to(tl.int64)
        used = (slot >= 0) & (lane < tl.load(ranks + slot, mask=slot >= 0, other=0))
        w = tl.load(
            b + (slot[None, :] * rows + row[:, None]) * RANK + lane[None, :], mask=mine[:, None] & used[None, :],
            other=0.0,
        )  # fmt: skip
        shrunk = tl.zeros((EXPANDED,), tl.float32)
        for share in range(SHARES):
            source = shares + (share * count + owner) * SHRUNK + piece * RANK + lane
            shrunk += tl.load(source, mask=used, other=0.0, cache_modifier=".cg")
        own = tl.where(owner[:, None] == token[None, :], shrunk[:, None], 0.0)
        total = tl.dot(w, own.to(w.dtype), total)
    return total
