"""Rows beside their shrinks, for one product to be that of a weight and of the expands of a few adapters beside it.

With ``W`` and the ``B`` of all slots in one matrix, ``[W | B] [x | s]`` is the base's product and the delta, where
``s`` is zero but for the columns of the row's own slot; :mod:`.lora` says what ``B`` and ``s`` are.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.lora import programs_of, shrink_shape, shrink_tile
from tuneserve.kernels.gpu.lora_rows import LoraRows, LoraWeights, span_of

# What :func:`joined_columns` is a multiple of, for rows to begin where cuBLAS likes them to.
_LANES = 64
# Rows and columns that a program copies.
_COPIED_ROWS, _COPIED = 8, 1024


def joined_columns(weights: LoraWeights) -> int:
    """Return how many columns the expands of all slots take: those of each slot and piece together, then zeros."""
    slots, shrunk, _ = weights.a.shape
    return int(triton.cdiv(slots * shrunk, _LANES)) * _LANES


def put_joined(joined: torch.Tensor, weights: LoraWeights, slot: int) -> None:
    """Write the expand of a slot into ``[W | B]`` (rows, columns and those of :func:`joined_columns`)."""
    rank, begin = weights.rank, 0
    own = joined[:, weights.a.shape[2] + slot * weights.a.shape[1] :]
    for piece, end in enumerate(weights.ends):
        own[begin:end, piece * rank : (piece + 1) * rank] = weights.b[slot, begin:end]
        begin = end


def lora_join_reference(x: torch.Tensor, weights: LoraWeights, slots: torch.Tensor) -> torch.Tensor:
    """Return what :func:`lora_join` writes."""
    shrunk = weights.a.shape[1]
    tail = x.new_zeros(len(x), joined_columns(weights))
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            own = weights.a[slot].float().view(-1, weights.rank, x.shape[1])[:, : int(weights.ranks[slot])]
            place = tail[row, slot * shrunk :][:shrunk].view(-1, weights.rank)
            place[:, : own.shape[1]] = (own @ x[row].float()).to(x.dtype)
    return torch.cat((x, tail), 1)


def lora_join(x: torch.Tensor, weights: LoraWeights, rows: LoraRows, out: torch.Tensor) -> torch.Tensor:
    """Write each row of ``x`` (rows, columns) and its shrink to ``out`` (rows, columns and :func:`joined_columns`)."""
    columns = weights.a.shape[2]
    span, programs = span_of(columns), programs_of(len(x))
    shares = int(triton.cdiv(columns, span))
    copies = int(triton.cdiv(len(x), _COPIED_ROWS) * triton.cdiv(columns, _COPIED))
    _join[(programs * shares + copies,)](
        x, weights.a, weights.ranks, rows.order, rows.tiles, rows.counts, rows.shares, rows.done, out, len(x), columns,
        out.shape[1], PROGRAMS=programs, SHARES=shares, SPAN=span, LANES=_LANES, COPIED_ROWS=_COPIED_ROWS,
        COPIED=_COPIED, **shrink_shape(weights), num_warps=4, num_stages=3, **dependent(_join),
    )  # fmt: skip
    return out


@triton.jit
def _join(
    x, a, ranks, order, tiles, counts, shares, done, out, rows, columns, width,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr,
    PART: tl.constexpr, SHARES: tl.constexpr, LANES: tl.constexpr, COPIED_ROWS: tl.constexpr, COPIED: tl.constexpr,
    PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    if program >= PROGRAMS * SHARES:
        # Most programs copy, while the first ones shrink.
        across = tl.cdiv(columns, COPIED)
        piece = program - PROGRAMS * SHARES
        row = (piece // across * COPIED_ROWS + tl.arange(0, COPIED_ROWS)).to(tl.int64)[:, None]
        column = (piece % across * COPIED + tl.arange(0, COPIED))[None, :]
        here = (row < rows) & (column < columns)
        tl.store(out + row * width + column, tl.load(x + row * columns + column, mask=here, other=0.0), mask=here)
        return
    member, lane = tl.arange(0, TILE), tl.arange(0, LANES)
    share = program % SHARES
    for tile in range(program // SHARES, tl.load(counts + 1), PROGRAMS):
        real = (member < tl.load(tiles + tile * 3 + 1))[:, None]
        row = tl.load(order + tl.load(tiles + tile * 3) + member[:, None], mask=real, other=0).to(tl.int64)
        slot = tl.load(tiles + tile * 3 + 2)
        if slot >= 0:
            shrink_tile(
                x, a, ranks, order, tiles, shares, rows, columns, tile, share, SHRUNK, RANK, PADDED, TILE, SPAN, PART
            )
        tl.debug_barrier()
        if tl.atomic_add(done + tile, 1, sem="acq_rel") == SHARES - 1:
            # The last to arrive adds the shares up, and has the other slots take no part.
            for first in range(0, width - columns, LANES):
                number = (first + lane)[None, :]
                known = real & (number // SHRUNK == slot)
                total = tl.zeros((TILE, LANES), tl.float32)
                for each in tl.static_range(SHARES):
                    source = shares + (each * rows + row) * SHRUNK + number % SHRUNK
                    total += tl.load(source, mask=known, other=0.0, cache_modifier=".cg")
                tl.store(out + row * width + columns + number, total.to(out.dtype.element_ty), mask=real)
            tl.store(done + tile, 0)
