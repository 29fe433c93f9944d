"""Rows beside their shrinks, for one product to be that of a weight and of the expands of a few adapters beside it.

With ``W`` and the ``B`` of all slots in one matrix, ``[W | B] [x | s]`` is the base's product and the delta, where
``s`` is zero but for the columns of the row's own slot; :mod:`.lora` says what ``B`` and ``s`` are. What makes ``x``,
a norm or a gate, writes it beside ``s`` in the same pass.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.gate import gate_reference
from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.lora_rows import SPAN, LoraRows, LoraWeights

# What :func:`joined_columns` is a multiple of, for rows to begin where cuBLAS likes them to.
_LANES = 64
# Rows of a program, and numbers to which it shrinks them at a time; its columns are a share of the shrink.
_ROWS, _MOST_SHRUNK = 16, 128
# Enough for the multiprocessors of the largest GPUs; beyond, a program takes several shares.
_PROGRAMS, _WARPS = 512, 8


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


def lora_join(
    x: torch.Tensor,
    weights: LoraWeights,
    rows: LoraRows,
    out: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """Write each row of ``x``, normed where there is a norm, and its shrink to ``out``.

    Args:
        x: (rows, columns).
        weights: the adapters.
        rows: which rows take which.
        out: (rows, columns and those of :func:`joined_columns`).
        norm, eps: (columns), weight of an RMS norm of ``x``.
    """
    return _launch(x, weights, rows, out, norm, eps, gated=False)


def lora_join_gate(gate_up: torch.Tensor, weights: LoraWeights, rows: LoraRows, out: torch.Tensor) -> torch.Tensor:
    """Do :func:`lora_join` with ``silu(first) * second`` of the halves of each row of ``gate_up``."""
    return _launch(gate_up, weights, rows, out, None, 0.0, gated=True)


def lora_join_norm_reference(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weights: LoraWeights, slots: torch.Tensor
) -> torch.Tensor:
    """Return what :func:`lora_join` writes where there is a norm."""
    normed = F.rms_norm(x.float(), x.shape[-1:], norm.float(), eps).to(x.dtype)
    return lora_join_reference(normed, weights, slots)


def lora_join_gate_reference(gate_up: torch.Tensor, weights: LoraWeights, slots: torch.Tensor) -> torch.Tensor:
    """Return what :func:`lora_join_gate` writes."""
    return lora_join_reference(gate_reference(gate_up), weights, slots)


def _launch(
    x: torch.Tensor, weights: LoraWeights, rows: LoraRows, out: torch.Tensor, norm: torch.Tensor | None, eps: float, *,
    gated: bool,
) -> torch.Tensor:  # fmt: skip
    assert x.is_contiguous() and out.is_contiguous()
    _, shrunk, columns = weights.a.shape
    tiles, shares = int(triton.cdiv(len(x), _ROWS)), int(triton.cdiv(columns, SPAN))
    each = int(triton.cdiv(shares, max(1, _PROGRAMS // tiles)))
    _join[(tiles, triton.cdiv(shares, each))](
        x, norm, eps, weights.a, weights.ranks, rows.slots, rows.shares, rows.done, out, len(x), columns, out.shape[1],
        NORM=norm is not None, GATED=gated, SHRUNK=shrunk, RANK=weights.rank,
        PADDED=min(_MOST_SHRUNK, max(16, power_of_two(shrunk))), SHARES=shares, EACH=each, ROWS=_ROWS, SPAN=SPAN,
        LANES=_LANES, num_warps=_WARPS, **dependent(_join),
    )  # fmt: skip
    return out


@triton.jit
def _join(
    x, norm, eps, a, ranks, slots, shares, done, out, rows, columns, width,
    NORM: tl.constexpr, GATED: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr,
    SHARES: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, LANES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    tile = tl.program_id(0)
    row = tile * ROWS + tl.arange(0, ROWS)
    real = row < rows
    slot = tl.load(slots + row, mask=real, other=-1)
    row = row.to(tl.int64)
    column = tl.arange(0, SPAN)
    begin = tl.program_id(1) * EACH
    highest = tl.max(slot, 0)
    # Ahead of what makes ``x``, as is the weight of the norm.
    w = _columns(a, ranks, highest, 0, begin * SPAN + column, columns, SHRUNK, RANK, PADDED)
    if NORM:
        scale = tl.load(norm + begin * SPAN + column, mask=begin * SPAN + column < columns, other=0.0)
    if PDL:
        gdc_wait()
    factor = tl.full((ROWS,), 1.0, tl.float32)
    if NORM:
        squares = tl.zeros((ROWS, SPAN), tl.float32)
        for part in tl.static_range(SHARES):
            inside = real[:, None] & (part * SPAN + column < columns)[None, :]
            some = tl.load(x + row[:, None] * columns + (part * SPAN + column)[None, :], mask=inside, other=0.0)
            squares += some.to(tl.float32) * some.to(tl.float32)
        factor = 1.0 / tl.sqrt(tl.sum(squares, 1) / columns + eps)
    for share in range(begin, tl.minimum(begin + EACH, SHARES)):
        at = share * SPAN + column
        here = real[:, None] & (at < columns)[None, :]
        if GATED:
            source = x + row[:, None] * 2 * columns + at[None, :]
            value = tl.load(source, mask=here, other=0.0).to(tl.float32)
            value = value / (1.0 + tl.exp(-value)) * tl.load(source + columns, mask=here, other=0.0).to(tl.float32)
        else:
            value = tl.load(x + row[:, None] * columns + at[None, :], mask=here, other=0.0).to(tl.float32)
        if NORM:
            value *= factor[:, None] * scale.to(tl.float32)[None, :]
            scale = tl.load(norm + SPAN + at, mask=SPAN + at < columns, other=0.0)
        value = value.to(out.dtype.element_ty)
        tl.store(out + row[:, None] * width + at[None, :], value, mask=here)
        # One slot of the tile's rows after the other.
        own = highest
        while own >= 0:
            for first in range(0, SHRUNK, PADDED):
                number = first + tl.arange(0, PADDED)
                if (first > 0) | (own != highest) | (share != begin):
                    w = _columns(a, ranks, own, first, at, columns, SHRUNK, RANK, PADDED)
                total = tl.dot(w, tl.trans(value))
                place = shares + (share * rows + row[None, :]) * SHRUNK + number[:, None]
                tl.store(place, total, mask=(number < SHRUNK)[:, None] & (slot == own)[None, :])
            own = tl.max(tl.where(slot < own, slot, -1), 0)
    tl.debug_barrier()
    if tl.atomic_add(done + tile, 1, sem="acq_rel") == tl.num_programs(1) - 1:
        # The last to arrive adds the shares up, in their order, and has the other slots take no part.
        for first in range(0, width - columns, LANES):
            number = (first + tl.arange(0, LANES))[None, :]
            known = real[:, None] & (number // SHRUNK == slot[:, None])
            total = tl.zeros((ROWS, LANES), tl.float32)
            for each in tl.static_range(SHARES):
                source = shares + (each * rows + row[:, None]) * SHRUNK + number % SHRUNK
                total += tl.load(source, mask=known, other=0.0, cache_modifier=".cg")
            place = out + row[:, None] * width + columns + number
            tl.store(place, total.to(out.dtype.element_ty), mask=real[:, None])
        tl.store(done + tile, 0)


@triton.jit
def _columns(a, ranks, slot, first, column, columns, SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr):
    """Return some rows of a slot's A over some columns, zero beyond its rank."""
    number = first + tl.arange(0, PADDED)
    rank = tl.load(ranks + slot, mask=slot >= 0, other=0)
    used = (number < SHRUNK) & (number % RANK < rank)
    source = a + (tl.maximum(slot, 0).to(tl.int64) * SHRUNK + number)[:, None] * columns + column[None, :]
    return tl.load(source, mask=used[:, None] & (column < columns)[None, :], other=0.0)
