"""Rows beside their shrinks, for one product to be that of a weight and of the expands of a few adapters beside it.

With ``W`` and the ``B`` of all slots in one matrix, ``[W | B] [x | s]`` is the base's product and the delta, where
``s`` is zero but for the columns of the row's own slot; :mod:`.lora` says what ``B`` and ``s`` are. What makes ``x``,
a norm or a gate, writes it beside ``s`` in the same pass. A shrink stands there in shares, each of some columns of
``x``, and ``B`` as often: the product adds them up, and no program waits for another.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.gate import gate_reference
from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.lora_rows import LoraRows, LoraWeights

# What :func:`joined_columns` is a multiple of, for rows to begin where cuBLAS likes them to.
_LANES = 64
# Columns of ``x`` in the smallest share, how many shares there are at most, and columns that they may take together.
_SHARE, _MOST_SHARES, _TAIL = 1024, 8, 256
# Rows of a program where there are few, where there are many, and how many are few.
_ROWS, _MANY_ROWS, _FEW = 8, 32, 512
# Columns at a time, fewer where more than so many numbers are shrunk to, which have to fit in shared memory.
_BLOCK, _SHRUNK = 512, 64


def shares_of(weights: LoraWeights) -> int:
    """Return into how many shares the shrink of a row is divided."""
    slots, shrunk, columns = weights.a.shape
    return max(1, min(_MOST_SHARES, columns // _SHARE, _TAIL // (slots * shrunk)))


def joined_columns(weights: LoraWeights) -> int:
    """Return how many columns the expands take: those of each share, slot and piece together, then zeros."""
    slots, shrunk, _ = weights.a.shape
    return int(triton.cdiv(slots * shares_of(weights) * shrunk, _LANES)) * _LANES


def put_joined(joined: torch.Tensor, weights: LoraWeights, slot: int) -> None:
    """Write the expand of a slot into ``[W | B]`` (rows, columns and those of :func:`joined_columns`)."""
    slots, shrunk, columns = weights.a.shape
    rank = weights.rank
    for share in range(shares_of(weights)):
        own, begin = joined[:, columns + (share * slots + slot) * shrunk :], 0
        for piece, end in enumerate(weights.ends):
            own[begin:end, piece * rank : (piece + 1) * rank] = weights.b[slot, begin:end]
            begin = end


def lora_join_reference(x: torch.Tensor, weights: LoraWeights, slots: torch.Tensor) -> torch.Tensor:
    """Return what :func:`lora_join` writes."""
    slots_in_all, shrunk, columns = weights.a.shape
    shares = shares_of(weights)
    tail = x.new_zeros(len(x), joined_columns(weights))
    _, block, blocks = _shape(weights)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            own = weights.a[slot].float().view(-1, weights.rank, columns)[:, : int(weights.ranks[slot])]
            for share in range(shares):
                part = slice(share * blocks * block, (share + 1) * blocks * block)
                place = tail[row, (share * slots_in_all + slot) * shrunk :][:shrunk].view(-1, weights.rank)
                place[:, : own.shape[1]] = (own[..., part] @ x[row, part].float()).to(x.dtype)
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


def _shape(weights: LoraWeights) -> tuple[int, int, int]:
    """Return the numbers that a program shrinks to, padded, columns at a time, and how often it takes so many."""
    slots, shrunk, columns = weights.a.shape
    padded = max(16, power_of_two(slots * shrunk))
    block = _BLOCK * _SHRUNK // max(padded, _SHRUNK)
    return padded, block, int(triton.cdiv(columns, shares_of(weights) * block))


def _launch(
    x: torch.Tensor, weights: LoraWeights, rows: LoraRows, out: torch.Tensor, norm: torch.Tensor | None, eps: float, *,
    gated: bool,
) -> torch.Tensor:  # fmt: skip
    assert x.is_contiguous() and out.is_contiguous()
    slots, shrunk, columns = weights.a.shape
    shares, each = shares_of(weights), _ROWS if len(x) <= _FEW else _MANY_ROWS
    padded, block, blocks = _shape(weights)
    _join[(triton.cdiv(len(x), each), shares)](
        x, norm, eps, weights.a, rows.slots, out, len(x), columns, out.shape[1], NORM=norm is not None, GATED=gated,
        SHRUNK=shrunk, COUNT=slots * shrunk, PADDED=padded, SHARES=shares, BLOCKS=blocks,
        ALL=int(triton.cdiv(columns, block)), ROWS=each, BLOCK=block, LANES=_LANES, num_warps=8, **dependent(_join),
    )  # fmt: skip
    return out


@triton.jit
def _join(
    x, norm, eps, a, slots, out, rows, columns, width,
    NORM: tl.constexpr, GATED: tl.constexpr, SHRUNK: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr,
    SHARES: tl.constexpr, BLOCKS: tl.constexpr, ALL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    member = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = member < rows
    slot = tl.load(slots + member, mask=real, other=-1)
    row = member.to(tl.int64)[:, None]
    share = tl.program_id(1)
    column = share * BLOCKS * BLOCK + tl.arange(0, BLOCK)
    end = tl.minimum((share + 1) * BLOCKS * BLOCK, columns)
    # All slots at once, not waiting for who takes which, and ahead of what makes ``x``, as is the weight of the norm.
    number = tl.arange(0, PADDED)
    w = _columns(a, number, column, columns, end, COUNT)
    if NORM:
        scale = tl.load(norm + column, mask=column < columns, other=0.0)
    if PDL:
        gdc_wait()
    source = x + row * columns * (2 if GATED else 1)
    first = tl.load(source + column[None, :], mask=real[:, None] & (column < columns)[None, :], other=0.0)
    if GATED:
        second = tl.load(
            source + columns + column[None, :], mask=real[:, None] & (column < columns)[None, :], other=0.0
        )
    if NORM:
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        for part in tl.static_range(ALL):
            place = part * BLOCK + tl.arange(0, BLOCK)[None, :]
            some = tl.load(source + place, mask=real[:, None] & (place < columns), other=0.0).to(tl.float32)
            squares += some * some
        factor = 1.0 / tl.sqrt(tl.sum(squares, 1) / columns + eps)
    total = tl.zeros((PADDED, ROWS), tl.float32)
    for _ in range(BLOCKS):
        # The next ones are always on their way.
        ahead = column + BLOCK
        inside = real[:, None] & (ahead < end)[None, :]
        next_w = _columns(a, number, ahead, columns, end, COUNT)
        next_first = tl.load(source + ahead[None, :], mask=inside, other=0.0)
        value = first.to(tl.float32)
        if NORM:
            value *= factor[:, None] * scale.to(tl.float32)[None, :]
            scale = tl.load(norm + ahead, mask=ahead < end, other=0.0)
        if GATED:
            next_second = tl.load(source + columns + ahead[None, :], mask=inside, other=0.0)
            value = value / (1.0 + tl.exp(-value)) * second.to(tl.float32)
            second = next_second
        value = value.to(out.dtype.element_ty)
        tl.store(out + row * width + column[None, :], value, mask=real[:, None] & (column < columns)[None, :])
        total = tl.dot(w, tl.trans(value), total)
        w, first, column = next_w, next_first, ahead
    beside = out + row * width + columns
    shrunk = tl.trans(tl.where((number // SHRUNK)[:, None] == slot[None, :], total, 0.0))
    place = beside + share * COUNT + number[None, :]
    tl.store(place, shrunk.to(out.dtype.element_ty), mask=real[:, None] & (number < COUNT)[None, :])
    if share == 0:
        # What no slot has must not be what is not a number.
        for begin in range(SHARES * COUNT, width - columns, LANES):
            lane = begin + tl.arange(0, LANES)[None, :]
            zeros = tl.zeros((ROWS, LANES), out.dtype.element_ty)
            tl.store(beside + lane, zeros, mask=real[:, None] & (lane < width - columns))


@triton.jit
def _columns(a, number, column, columns, end, COUNT: tl.constexpr):
    """Return the A of all slots over some columns before ``end``; each is zero beyond its own rank."""
    source = a + number.to(tl.int64)[:, None] * columns + column[None, :]
    return tl.load(source, mask=(number < COUNT)[:, None] & (column < end)[None, :], other=0.0)
