"""The experts of many rows on the matrix units: tiles of rows that take the same expert, whose weights are read once.

Memory bounds a few rows, each expert of which has a small tile; prompts have tiles as large as cuBLAS'.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.expert_gate import ExpertGate, ExpertWeights, combine_halves
from tuneserve.kernels.gpu.group import Groups
from tuneserve.kernels.gpu.launch import dependent, stages_within
from tuneserve.kernels.gpu.route import Routes

__all__ = ["rows_combine", "rows_down", "rows_gate_up", "tile_of"]

# Tiles that take the same weights at about the same time.
_ABREAST = 8


def tile_of(rows: int, per_token: int, experts: int) -> int:
    """Return how many rows a tile should have at most, by how many an expert has on average, as measured."""
    average = rows * per_token / experts
    return 16 if average <= 8 else 32 if average <= 24 else 64 if average <= 96 else 128


def rows_gate_up(
    x: torch.Tensor, groups: Groups, weights: ExpertWeights, gate: ExpertGate, out: torch.Tensor
) -> torch.Tensor:
    """Multiply rows by the first weights of their experts, and combine the halves of each product.

    Args:
        x: (rows, hidden).
        groups: of the rows.
        weights: (experts, 2 * inner, hidden).
        gate: between the halves.
        out: (rows * per_token, inner), the result of each pair that is in a tile.
    """
    per_token = len(out) // len(x)
    return _product(x, None, groups, weights, gate, out, per_token)


def rows_down(
    x: torch.Tensor, routes: Routes, groups: Groups, weights: ExpertWeights, out: torch.Tensor
) -> torch.Tensor:
    """Multiply what each expert of each row came to by its second weight and by its share.

    Args:
        x: (rows * per_token, inner).
        routes: of the rows.
        groups: of the rows.
        weights: (experts, hidden, inner).
        out: (rows * per_token, hidden), the result of each pair that is in a tile.
    """
    return _product(x, routes.shares, groups, weights, None, out, 1)


def rows_combine(products: torch.Tensor, routes: Routes, out: torch.Tensor) -> torch.Tensor:
    """Add up the products of each row's experts and add them to the row; count no rows any more.

    Args:
        products: (rows * per_token, hidden).
        routes: of the rows.
        out: (rows, hidden), added to; rounded once.
    """
    block = 1024
    (rows, hidden), experts = out.shape, len(routes.counts)
    _combine[(rows, triton.cdiv(hidden, block))](
        products, routes.experts, routes.counts, out, hidden, experts, PAIRS=routes.experts.shape[1], BLOCK=block,
        LANES=1024, num_warps=4, **dependent(_combine),
    )  # fmt: skip
    return out


def shape_of(tile: int) -> tuple[int, int, int, int]:
    """Return rows of the weight (of each half) per program, columns at a time, warps and stages, as measured."""
    return (128, 64, 8, 4) if tile > 64 else (64, 128, 4, 4 if tile == 16 else 3)


def _product(
    x: torch.Tensor, shares: torch.Tensor | None, groups: Groups, weights: ExpertWeights, gate: ExpertGate | None,
    out: torch.Tensor, per_row: int,
) -> torch.Tensor:  # fmt: skip
    results, columns = out.shape[1], x.shape[1]
    rows, block, warps, stages = shape_of(groups.tile)
    kind, alpha, limit = ("none", 1.0, 0.0) if gate is None else (gate.kind, gate.alpha, gate.limit)
    taken = (rows if gate is None else 2 * rows) + groups.tile
    stages = stages_within(stages, taken * block * x.itemsize, x.device)
    _expert_rows[(len(groups.tiles) * triton.cdiv(results, rows),)](
        x, shares, groups.order, groups.tiles, weights.weight, weights.bias, out, results, columns, alpha, limit,
        per_row, ROWS=rows, BLOCK=block, TILE=groups.tile, ABREAST=_ABREAST, BIAS=weights.bias is not None,
        KIND=kind, num_warps=warps, num_stages=stages, **dependent(_expert_rows),
    )  # fmt: skip
    return out


@triton.jit
def _expert_rows(
    x, shares, order, tiles, weight, bias, out, results, columns, alpha, limit, per_row,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, ABREAST: tl.constexpr, BIAS: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    blocks = tl.cdiv(results, ROWS)
    program, several = tl.program_id(0), ABREAST * blocks
    begin = program // several * ABREAST
    abreast = tl.minimum(tl.num_programs(0) // blocks - begin, ABREAST)
    tile = begin + program % several % abreast
    expert = tl.load(tiles + tile * 3).to(tl.int64)
    if expert < 0:
        return
    member = tl.arange(0, TILE)
    real = member < tl.load(tiles + tile * 3 + 2)
    pair = tl.load(order + tl.load(tiles + tile * 3 + 1) + member, mask=real, other=0)
    row = program % several // abreast * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = row < results
    halves = 1 if KIND == "none" else 2
    first = weight + (expert * halves * results + row)[:, None] * columns + column[None, :]
    second = first + results.to(tl.int64) * columns
    values = x + (pair // per_row).to(tl.int64)[None, :] * columns + column[:, None]
    total = tl.zeros((ROWS, TILE), tl.float32)
    other = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, columns, BLOCK):
        here = start + column < columns
        value = tl.load(values + start, mask=here[:, None] & real[None, :], other=0.0)
        w = tl.load(first + start, mask=inside[:, None] & here[None, :], other=0.0)
        total = tl.dot(w, value, total)
        if KIND != "none":
            v = tl.load(second + start, mask=inside[:, None] & here[None, :], other=0.0)
            other = tl.dot(v, value, other)
    if BIAS:
        added = bias + expert * halves * results + row
        total += tl.load(added, mask=inside, other=0.0).to(tl.float32)[:, None]
        if KIND != "none":
            other += tl.load(added + results, mask=inside, other=0.0).to(tl.float32)[:, None]
    if KIND == "none":
        total *= tl.load(shares + pair, mask=real, other=0.0)[None, :]
    else:
        total = combine_halves(total, other, alpha, limit, KIND)
    place = out + pair.to(tl.int64)[None, :] * results + row[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside[:, None] & real[None, :])


@triton.jit
def _combine(
    products, experts, counts, out, hidden, count,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    total = tl.load(out + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
    for place in range(PAIRS):
        pair = row * PAIRS + place
        # What no expert has written may be anything.
        known = column < tl.where(tl.load(experts + pair) >= 0, hidden, 0)
        total += tl.load(products + pair * hidden + column, mask=known, other=0.0).to(tl.float32)
    tl.store(out + row * hidden + column, total.to(out.dtype.element_ty), mask=inside)
    if (row == 0) & (tl.program_id(1) == 0):
        for first in range(0, count, LANES):
            lane = first + tl.arange(0, LANES)
            tl.store(counts + lane, tl.zeros((LANES,), tl.int32), mask=lane < count)
