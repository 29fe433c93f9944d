"""Low-rank deltas (arXiv:2106.09685) of many adapters in one batch (arXiv:2310.18547, 2311.03285).

A delta is a shrink, ``s = A x``, and an expand, ``B s``. Linear layers that are computed as one, such as queries, keys
and values, are its pieces: ``A`` has the rows of one after the other, and each range of results takes its own part of
``s``. The shrink is summed in shares of the columns, so that many programs can have a part in it; whoever expands adds
the shares up, always in the same order.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.lora_rows import PART, TILE, LoraRows, LoraWeights, span_of

# Rows of A at a time, that sums stay in registers.
_MOST_ROWS = 128
_EXPAND = 128


def lora_reference(x: torch.Tensor, weights: LoraWeights, slots: torch.Tensor) -> torch.Tensor:
    """Return the delta of each row of ``x`` (rows, columns), float32 (rows, results)."""
    delta = torch.zeros(len(x), weights.b.shape[1], device=x.device)
    rank = weights.rank
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        shrunk, begin, own = x[row].float() @ weights.a[slot].float().T, 0, int(weights.ranks[slot])
        for piece, end in enumerate(weights.ends):
            delta[row, begin:end] = weights.b[slot, begin:end, :own].float() @ shrunk[piece * rank :][:own]
            begin = end
    return delta


def lora_shrink(x: torch.Tensor, weights: LoraWeights, rows: LoraRows) -> None:
    """Shrink every row of ``x`` (rows, columns) that has an adapter into ``rows.shares``."""
    columns = weights.a.shape[2]
    span = span_of(columns)
    _shrink[(_programs(len(x)), triton.cdiv(columns, span))](
        x, weights.a, weights.ranks, rows.order, rows.tiles, rows.counts, rows.shares, len(x), columns,
        PROGRAMS=_programs(len(x)), SPAN=span, **shrink_shape(weights), num_warps=4, num_stages=3,
        **dependent(_shrink),
    )  # fmt: skip


def shrink_shape(weights: LoraWeights) -> dict[str, Any]:
    """Return the sizes of tiles of a shrink."""
    shrunk = weights.a.shape[1]
    padded = min(_MOST_ROWS, max(16, power_of_two(shrunk)))
    return {"SHRUNK": shrunk, "RANK": weights.rank, "PADDED": padded, "TILE": TILE, "PART": PART}


def lora_expand(weights: LoraWeights, rows: LoraRows, columns: int, out: torch.Tensor) -> torch.Tensor:
    """Add to ``out`` (rows, results) what the shrinks of an input of so many ``columns`` expand to."""
    results = weights.b.shape[1]
    _expand[(_programs(len(out)), triton.cdiv(results, _EXPAND))](
        weights.b, rows.order, rows.tiles, rows.counts, rows.shares, out, len(out), results,
        *piece_ends(weights, results), PROGRAMS=_programs(len(out)), **_expand_shape(weights, columns),
        num_warps=4, **dependent(_expand),
    )  # fmt: skip
    return out


def lora_gate(
    weights: LoraWeights, rows: LoraRows, columns: int, gate_up: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Add what the shrinks expand to to each half of ``gate_up``, and put ``silu(first) * second`` into ``out``.

    Args:
        weights: of two pieces, the gate and up.
        rows: which rows take which.
        columns: of the input.
        gate_up: (rows, 2 * intermediate).
        out: (rows, intermediate).
    """
    inner = out.shape[1]
    _gate[(_programs(len(out)), triton.cdiv(inner, _EXPAND))](
        weights.b, rows.order, rows.tiles, rows.counts, rows.shares, gate_up, out, len(out), inner,
        PROGRAMS=_programs(len(out)), **_expand_shape(weights, columns), num_warps=4, **dependent(_gate),
    )  # fmt: skip
    return out


def lora_gate_reference(
    weights: LoraWeights, x: torch.Tensor, slots: torch.Tensor, gate_up: torch.Tensor
) -> torch.Tensor:
    """Return what :func:`lora_gate` does after the shrink of ``x``, in float32, rounded once."""
    first, second = (gate_up.float() + lora_reference(x, weights, slots)).chunk(2, dim=-1)
    return (F.silu(first) * second).to(gate_up.dtype)


def piece_ends(weights: LoraWeights, results: int) -> tuple[int, int]:
    """Return where the first and the second piece of the results end."""
    ends = (*weights.ends, results, results)
    return ends[0], ends[1]


def _expand_shape(weights: LoraWeights, columns: int) -> dict[str, int]:
    lanes = max(16, power_of_two(weights.rank))
    return {
        "SHARES": int(triton.cdiv(columns, span_of(columns))), "SHRUNK": weights.a.shape[1], "RANK": weights.rank,
        "LANES": lanes, "TILE": TILE, "BLOCK": _EXPAND,
    }  # fmt: skip


def _programs(rows: int) -> int:
    """Return how many programs share the tiles of so many rows, most of which few adapters leave without one."""
    return min(rows, max(8, rows // 8))


@triton.jit
def shrink_tile(
    x, a, ranks, order, tiles, shares, rows, columns, tile, share,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Shrink a tile's rows over one share of the columns."""
    begin = tl.load(tiles + tile * 3)
    count = tl.load(tiles + tile * 3 + 1)
    slot = tl.load(tiles + tile * 3 + 2)
    rank = tl.load(ranks + slot)
    member = tl.arange(0, TILE)
    row = tl.load(order + begin + member, mask=member < count, other=0).to(tl.int64)
    part = tl.arange(0, PART)
    for first in range(0, SHRUNK, PADDED):
        number = first + tl.arange(0, PADDED)
        real = (number < SHRUNK) & (number % RANK < rank)
        source = a + (slot.to(tl.int64) * SHRUNK + number)[:, None] * columns
        total = tl.zeros((PADDED, TILE), tl.float32)
        for offset in range(0, SPAN, PART):
            column = share * SPAN + offset + part
            here = column < columns
            w = tl.load(source + column[None, :], mask=real[:, None] & here[None, :], other=0.0)
            value = tl.load(
                x + row[None, :] * columns + column[:, None], mask=here[:, None] & (member < count)[None, :], other=0.0
            )
            total = tl.dot(w, value, total)
        place = shares + (share * rows + row[None, :]) * SHRUNK + number[:, None]
        tl.store(place, total, mask=(number < SHRUNK)[:, None] & (member < count)[None, :])


@triton.jit
def _shrink(
    x, a, ranks, order, tiles, counts, shares, rows, columns,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr,
    PART: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for tile in range(tl.program_id(0), tl.load(counts), PROGRAMS):
        shrink_tile(
            x, a, ranks, order, tiles, shares, rows, columns, tile, tl.program_id(1), SHRUNK, RANK, PADDED, TILE, SPAN,
            PART,
        )  # fmt: skip


@triton.jit
def _summed(
    shares, row, real, lane, piece, rows,
    SHARES: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Return the shrinks of some rows, (TILE, LANES)."""
    total = tl.zeros((TILE, LANES), tl.float32)
    known = real[:, None] & (lane < RANK)[None, :]
    for share in tl.static_range(SHARES):
        source = shares + (share * rows + row[:, None]) * SHRUNK + piece * RANK + lane[None, :]
        total += tl.load(source, mask=known, other=0.0)
    return total


@triton.jit
def _expand(
    b, order, tiles, counts, shares, out, rows, results, first_end, second_end,
    SHARES: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    member, lane = tl.arange(0, TILE), tl.arange(0, LANES)
    start = tl.program_id(1) * BLOCK
    result = start + tl.arange(0, BLOCK)
    piece_of = (result >= first_end).to(tl.int32) + (result >= second_end).to(tl.int32)
    last = tl.minimum(start + BLOCK, results) - 1
    low = (start >= first_end).to(tl.int32) + (start >= second_end).to(tl.int32)
    high = (last >= first_end).to(tl.int32) + (last >= second_end).to(tl.int32)
    for tile in range(tl.program_id(0), tl.load(counts), PROGRAMS):
        begin = tl.load(tiles + tile * 3)
        real = member < tl.load(tiles + tile * 3 + 1)
        slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
        row = tl.load(order + begin + member, mask=real, other=0).to(tl.int64)
        w = tl.load(
            b + (slot * results + result[None, :]) * RANK + lane[:, None],
            mask=(lane < RANK)[:, None] & (result < results)[None, :], other=0.0,
        )  # fmt: skip
        place = out + row[:, None] * results + result[None, :]
        valid = real[:, None] & (result < results)[None, :]
        total = tl.load(place, mask=valid, other=0.0).to(tl.float32)
        for piece in range(low, high + 1):
            shrunk = _summed(shares, row, real, lane, piece, rows, SHARES, SHRUNK, RANK, TILE, LANES)
            mine = tl.where((piece_of == piece)[None, :], w, 0.0)
            total = tl.dot(shrunk.to(w.dtype), mine.to(w.dtype), total)
        tl.store(place, total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _gate(
    b, order, tiles, counts, shares, gate_up, out, rows, inner,
    SHARES: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    member, lane = tl.arange(0, TILE), tl.arange(0, LANES)
    result = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for tile in range(tl.program_id(0), tl.load(counts + 1), PROGRAMS):
        begin = tl.load(tiles + tile * 3)
        real = member < tl.load(tiles + tile * 3 + 1)
        slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
        row = tl.load(order + begin + member, mask=real, other=0).to(tl.int64)
        place = gate_up + row[:, None] * 2 * inner + result[None, :]
        valid = real[:, None] & (result < inner)[None, :]
        first = tl.load(place, mask=valid, other=0.0).to(tl.float32)
        second = tl.load(place + inner, mask=valid, other=0.0).to(tl.float32)
        if slot >= 0:
            known = (lane < RANK)[:, None] & (result < inner)[None, :]
            source = b + (slot * 2 * inner + result[None, :]) * RANK + lane[:, None]
            w = tl.load(source, mask=known, other=0.0)
            v = tl.load(source + inner.to(tl.int64) * RANK, mask=known, other=0.0)
            shrunk = _summed(shares, row, real, lane, 0, rows, SHARES, SHRUNK, RANK, TILE, LANES)
            first = tl.dot(shrunk.to(w.dtype), w, first)
            shrunk = _summed(shares, row, real, lane, 1, rows, SHARES, SHRUNK, RANK, TILE, LANES)
            second = tl.dot(shrunk.to(w.dtype), v, second)
        gated = first / (1.0 + tl.exp(-first)) * second
        tl.store(out + row[:, None] * inner + result[None, :], gated.to(out.dtype.element_ty), mask=valid)
