"""Low-rank deltas (arXiv:2106.09685) of many adapters in one batch (arXiv:2310.18547, 2311.03285).

A delta is a shrink, ``s = A x``, and an expand, ``B s``. Linear layers that are computed as one, such as queries, keys
and values, are its pieces: ``A`` has the rows of one after the other, and each range of results takes its own part of
``s``. The shrink is summed in shares of the columns, so that many programs can have a part in it; the last of them adds
the shares up, always in the same order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.activation import activated, activated_reference
from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.lora_rows import PART, TILE, LoraRows, LoraWeights, span_of
from tuneserve.spec import Activation

# Rows of A at a time, that sums stay in registers.
_MOST_ROWS = 128
# Results and rows at a time of an expand.
_EXPAND, _MEMBERS = 128, 16


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
    """Shrink every row of ``x`` (rows, columns) that has an adapter into ``rows.shrunk``."""
    columns = weights.a.shape[2]
    span = span_of(columns)
    _shrink[(programs_of(len(x)), triton.cdiv(columns, span))](
        x, weights.a, weights.ranks, rows.order, rows.tiles, rows.counts, rows.shares, rows.shrunk, rows.done,
        len(x), columns, PROGRAMS=programs_of(len(x)), SHARES=int(triton.cdiv(columns, span)), SPAN=span,
        **shrink_shape(weights), num_warps=4, num_stages=3, **dependent(_shrink),
    )  # fmt: skip


def shrink_shape(weights: LoraWeights) -> dict[str, Any]:
    """Return the sizes of tiles of a shrink."""
    shrunk = weights.a.shape[1]
    padded = min(_MOST_ROWS, max(16, power_of_two(shrunk)))
    return {"SHRUNK": shrunk, "RANK": weights.rank, "PADDED": padded, "TILE": TILE, "PART": PART}


def lora_expand(weights: LoraWeights, rows: LoraRows, out: torch.Tensor) -> torch.Tensor:
    """Add to ``out`` (rows, results) what the shrinks expand to."""
    results = weights.b.shape[1]
    _expand[(programs_of(len(out)), triton.cdiv(results, _EXPAND))](
        weights.b, rows.order, rows.tiles, rows.counts, rows.shrunk, out, results,
        *piece_ends(weights, results), PROGRAMS=programs_of(len(out)), **_expand_shape(weights),
        num_warps=4, **dependent(_expand),
    )  # fmt: skip
    return out


def lora_gate(
    weights: LoraWeights,
    rows: LoraRows,
    gate_up: torch.Tensor,
    out: torch.Tensor,
    activation: Activation = "silu",
) -> torch.Tensor:
    """Add what the shrinks expand to to each half of ``gate_up``, and put ``activation(first) * second`` into ``out``.

    Args:
        weights: of two pieces, the gate and up.
        rows: which rows take which.
        gate_up: (rows, 2 * intermediate).
        out: (rows, intermediate).
        activation: of the gate.
    """
    inner = out.shape[1]
    _gate[(programs_of(len(out)), triton.cdiv(inner, _EXPAND))](
        weights.b, rows.order, rows.tiles, rows.counts, rows.shrunk, gate_up, out, inner,
        ACTIVATION=activation, PROGRAMS=programs_of(len(out)), **_expand_shape(weights), num_warps=4,
        **dependent(_gate),
    )  # fmt: skip
    return out


def lora_gate_reference(
    weights: LoraWeights,
    x: torch.Tensor,
    slots: torch.Tensor,
    gate_up: torch.Tensor,
    activation: Activation = "silu",
) -> torch.Tensor:
    """Return what :func:`lora_gate` does after the shrink of ``x``, in float32, rounded once."""
    first, second = (gate_up.float() + lora_reference(x, weights, slots)).chunk(2, dim=-1)
    return (activated_reference(first, activation) * second).to(gate_up.dtype)


def piece_ends(weights: LoraWeights, results: int) -> tuple[int, int]:
    """Return where the first and the second piece of the results end."""
    ends = (*weights.ends, results, results)
    return ends[0], ends[1]


def _expand_shape(weights: LoraWeights) -> dict[str, int]:
    lanes = max(16, power_of_two(weights.rank))
    return {
        "SHRUNK": weights.a.shape[1], "RANK": weights.rank, "LANES": lanes, "MEMBERS": _MEMBERS, "BLOCK": _EXPAND,
    }  # fmt: skip


def programs_of(rows: int) -> int:
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
def finish_tile(
    order, tiles, shares, shrunk, done, rows, tile,
    SHRUNK: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Add up the shares of a tile if all are there, and return whether they are."""
    tl.debug_barrier()
    last = tl.atomic_add(done + tile, 1, sem="acq_rel") == SHARES - 1
    if last:
        begin = tl.load(tiles + tile * 3)
        member = tl.arange(0, TILE)
        real = member < tl.load(tiles + tile * 3 + 1)
        row = tl.load(order + begin + member, mask=real, other=0).to(tl.int64)
        for first in range(0, SHRUNK, PADDED):
            number = first + tl.arange(0, PADDED)
            place = row[None, :] * SHRUNK + number[:, None]
            known = (number < SHRUNK)[:, None] & real[None, :]
            total = tl.zeros((PADDED, TILE), tl.float32)
            for share in tl.static_range(SHARES):
                total += tl.load(shares + share * rows * SHRUNK + place, mask=known, other=0.0, cache_modifier=".cg")
            tl.store(shrunk + place, total.to(shrunk.dtype.element_ty), mask=known)
        tl.store(done + tile, 0)
    return last


@triton.jit
def _shrink(
    x, a, ranks, order, tiles, counts, shares, shrunk, done, rows, columns,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr,
    PART: tl.constexpr, SHARES: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for tile in range(tl.program_id(0), tl.load(counts), PROGRAMS):
        shrink_tile(
            x, a, ranks, order, tiles, shares, rows, columns, tile, tl.program_id(1), SHRUNK, RANK, PADDED, TILE, SPAN,
            PART,
        )  # fmt: skip
        finish_tile(order, tiles, shares, shrunk, done, rows, tile, SHRUNK, PADDED, TILE, SHARES)


@triton.jit
def _part(shrunk, row, real, lane, used, piece, SHRUNK: tl.constexpr, RANK: tl.constexpr):
    """Return the shrinks of some rows for a piece, (MEMBERS, LANES), of which ``used`` are not zero."""
    known = real[:, None] & (lane < used)[None, :]
    return tl.load(shrunk + row[:, None] * SHRUNK + piece * RANK + lane[None, :], mask=known, other=0.0)


@triton.jit
def _expand(
    b, order, tiles, counts, shrunk, out, results, first_end, second_end,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, LANES: tl.constexpr, MEMBERS: tl.constexpr, BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.arange(0, LANES)
    start = tl.program_id(1) * BLOCK
    result = start + tl.arange(0, BLOCK)
    piece_of = (result >= first_end).to(tl.int32) + (result >= second_end).to(tl.int32)
    last = tl.minimum(start + BLOCK, results) - 1
    low = (start >= first_end).to(tl.int32) + (start >= second_end).to(tl.int32)
    high = (last >= first_end).to(tl.int32) + (last >= second_end).to(tl.int32)
    for tile in range(tl.program_id(0), tl.load(counts), PROGRAMS):
        begin = tl.load(tiles + tile * 3)
        members = tl.load(tiles + tile * 3 + 1)
        slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
        w = tl.load(
            b + (slot * results + result[None, :]) * RANK + lane[:, None],
            mask=(lane < RANK)[:, None] & (result < results)[None, :], other=0.0,
        )  # fmt: skip
        # Most tiles of many adapters have a row or two.
        for done in range(0, members, MEMBERS):
            member = done + tl.arange(0, MEMBERS)
            real = member < members
            row = tl.load(order + begin + member, mask=real, other=0).to(tl.int64)
            place = out + row[:, None] * results + result[None, :]
            valid = real[:, None] & (result < results)[None, :]
            total = tl.load(place, mask=valid, other=0.0).to(tl.float32)
            for piece in range(low, high + 1):
                mine = tl.where((piece_of == piece)[None, :], w, 0.0)
                total = tl.dot(_part(shrunk, row, real, lane, RANK, piece, SHRUNK, RANK), mine.to(w.dtype), total)
            tl.store(place, total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _gate(
    b, order, tiles, counts, shrunk, gate_up, out, inner,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, LANES: tl.constexpr, MEMBERS: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.arange(0, LANES)
    result = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for tile in range(tl.program_id(0), tl.load(counts + 1), PROGRAMS):
        begin = tl.load(tiles + tile * 3)
        members = tl.load(tiles + tile * 3 + 1)
        slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
        # Rows of no adapter have no shrinks.
        used = tl.where(slot >= 0, RANK, 0)
        known = (lane < used)[:, None] & (result < inner)[None, :]
        source = b + (slot * 2 * inner + result[None, :]) * RANK + lane[:, None]
        w = tl.load(source, mask=known, other=0.0)
        v = tl.load(source + inner.to(tl.int64) * RANK, mask=known, other=0.0)
        for done in range(0, members, MEMBERS):
            member = done + tl.arange(0, MEMBERS)
            real = member < members
            row = tl.load(order + begin + member, mask=real, other=0).to(tl.int64)
            place = gate_up + row[:, None] * 2 * inner + result[None, :]
            valid = real[:, None] & (result < inner)[None, :]
            first = tl.load(place, mask=valid, other=0.0).to(tl.float32)
            second = tl.load(place + inner, mask=valid, other=0.0).to(tl.float32)
            first = tl.dot(_part(shrunk, row, real, lane, used, 0, SHRUNK, RANK), w, first)
            second = tl.dot(_part(shrunk, row, real, lane, used, 1, SHRUNK, RANK), v, second)
            gated = activated(first, ACTIVATION) * second
            tl.store(out + row[:, None] * inner + result[None, :], gated.to(out.dtype.element_ty), mask=valid)
