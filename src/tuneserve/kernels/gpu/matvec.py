"""One row times a weight matrix, at the speed of the memory bus, with the gate or the residual that follows fused in.

A program takes eight rows of the matrix, which share what it reads of ``x``, and has the next loads always in flight.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.lora import lora_reference, piece_ends
from tuneserve.kernels.gpu.lora_rows import SPAN, LoraRows, LoraWeights

# Numbers that a program shrinks to at a time.
_SHRUNK_ROWS = 16


@dataclass(frozen=True)
class LoraCall:
    """A low-rank delta that a product adds to its results.

    Attributes:
        weights: the adapters.
        rows: who takes which.
        arrived: int32 (1), zero before the launch, and its own: programs count there that the shrink is done.
    """

    weights: LoraWeights
    rows: LoraRows
    arrived: torch.Tensor


def matvec_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    lora: LoraCall | None = None,
) -> torch.Tensor:
    """Return what :func:`matvec` does, in float32, rounded once."""
    row = x.float() if norm is None else F.rms_norm(x.float(), x.shape[-1:], norm.float(), eps)
    product = F.linear(row, weight.float(), None if bias is None else bias.float())
    if lora is not None:
        product += lora_reference(row, lora.weights, lora.rows.slots[: len(x)])
    if gated:
        first, second = product.chunk(2, dim=-1)
        product = F.silu(first) * second
    return (product if residual is None else product + residual.float()).to(x.dtype)


def matvec(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    lora: LoraCall | None = None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Multiply one row; accumulates in float32 and rounds once.

    Args:
        x: (1, columns).
        weight: (rows, columns), each row contiguous; where ``gated``, the first half of the rows is the gate, and the
            result is ``silu(first) * second``.
        norm: (columns), weight of an RMS norm of ``x``, whose mean square is a single number and applied at the end.
        bias: (rows), added to the product.
        residual: (1, rows of the result), added to the result.
        lora: added to the product, before the gate. Its shrink is done by programs of this launch, the first of them,
            while the others multiply by ``weight``.
        out: (1, rows of the result), may be ``residual``.
    """
    rows, columns = weight.shape
    results = rows // 2 if gated else rows
    per_program, block, warps = shape_of(gated)
    shares = triton.cdiv(columns, SPAN)
    shrunk = 0 if lora is None else lora.weights.a.shape[1]
    shrinks = triton.cdiv(shrunk, _SHRUNK_ROWS) * shares
    adapters = (None,) * 6 if lora is None else (*_tensors(lora), lora.rows.shares, lora.arrived)
    ends = (None, None) if lora is None else piece_ends(lora.weights, rows)
    rank = 0 if lora is None else lora.weights.rank
    # As many as without a delta, so that as many programs run at once.
    registers = {"maxnreg": 96} if gated and lora is not None else {}
    _matvec[(shrinks + triton.cdiv(results, per_program),)](
        x, weight, weight.stride(0), norm, bias, residual, out, results, columns, eps, *adapters, *ends,
        LORA=lora is not None, SHRUNK=shrunk, RANK=rank, LANES=power_of_two(max(rank, 1)), SHARES=shares, SPAN=SPAN,
        SHARE_LANES=power_of_two(shares), TAKEN=_SHRUNK_ROWS,
        ROWS=per_program, BLOCK=block, NORM=norm is not None, BIAS=bias is not None, RESIDUAL=residual is not None,
        GATED=gated, num_warps=warps, **registers, **dependent(_matvec),
    )  # fmt: skip
    return out


def _tensors(lora: LoraCall) -> tuple[torch.Tensor, ...]:
    return lora.rows.slots, lora.weights.a, lora.weights.b, lora.weights.ranks


def shape_of(gated: bool) -> tuple[int, int, int]:
    """Return rows per program, columns at a time and warps, as measured."""
    return 4 if gated else 8, 512, 4


@triton.jit
def _matvec(
    x, weight, stride, norm, bias, residual, out, results, columns, eps, slots, a, b, ranks, shares, arrived,
    first_end, second_end, LORA: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, LANES: tl.constexpr,
    SHARES: tl.constexpr, SPAN: tl.constexpr, SHARE_LANES: tl.constexpr, TAKEN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    program = tl.program_id(0)
    if LORA:
        SHRINKS: tl.constexpr = (SHRUNK + TAKEN - 1) // TAKEN * SHARES
        slot = tl.load(slots)
        if program < SHRINKS:
            _shrink_row(
                x, norm, slot, a, ranks, shares, arrived, columns, program, NORM, SHRUNK, RANK, SHARES, SPAN, TAKEN, PDL
            )
            return
        program -= SHRINKS
    row = program * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < results)[:, None]
    first = weight + row.to(tl.int64)[:, None] * stride + column[None, :]
    second = first + results.to(tl.int64) * stride
    if LORA:
        lane = tl.arange(0, LANES)
        used = (lane < RANK) & (lane < tl.load(ranks + slot, mask=slot >= 0, other=0))
        expansion = b + tl.maximum(slot, 0).to(tl.int64) * results * (2 if GATED else 1) * RANK + lane[None, :]
        expand = tl.load(expansion + row[:, None] * RANK, mask=inside & used[None, :], other=0.0)
        if GATED:
            also = tl.load(expansion + (results + row)[:, None] * RANK, mask=inside & used[None, :], other=0.0)
    # The first weights are on their way before the kernel that makes ``x`` is done, and always the next ones.
    here = column < columns
    w = tl.load(first, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
    if GATED:
        v = tl.load(second, mask=inside & here[None, :], other=0.0, eviction_policy="evict_first")
    if LORA:
        # Most programs begin after the shrink is done, and read it before they need it.
        ready = tl.atomic_add(arrived, 0, sem="acquire")
        real = tl.minimum(row, results - 1)
        piece_of = (real >= first_end).to(tl.int32) + (real >= second_end).to(tl.int32)
        low = 0 if GATED else tl.min(piece_of, 0)
        part = _shrunk(shares, low, ready >= SHRINKS, SHRUNK, RANK, LANES, SHARES, SHARE_LANES)
        if GATED:
            other_part = _shrunk(shares, 1, ready >= SHRINKS, SHRUNK, RANK, LANES, SHARES, SHARE_LANES)
    if PDL:
        gdc_wait()
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    other = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        here = start + column < columns
        value = tl.load(x + start + column, mask=here, other=0.0).to(tl.float32)
        if NORM:
            squares += value * value
            value *= tl.load(norm + start + column, mask=here, other=0.0).to(tl.float32)
        ahead = inside & (start + BLOCK + column < columns)[None, :]
        next_w = tl.load(first + start + BLOCK, mask=ahead, other=0.0, eviction_policy="evict_first")
        total += w.to(tl.float32) * value[None, :]
        w = next_w
        if GATED:
            next_v = tl.load(second + start + BLOCK, mask=ahead, other=0.0, eviction_policy="evict_first")
            other += v.to(tl.float32) * value[None, :]
            v = next_v
    scale = 1.0
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / columns + eps)
    result = tl.sum(total, 1)
    if LORA and slot >= 0:
        if ready < SHRINKS:
            while tl.atomic_add(arrived, 0, sem="acquire") < SHRINKS:
                pass
            part = _shrunk(shares, low, True, SHRUNK, RANK, LANES, SHARES, SHARE_LANES)
            if GATED:
                other_part = _shrunk(shares, 1, True, SHRUNK, RANK, LANES, SHARES, SHARE_LANES)
        if GATED:
            result += _expanded(expand, part)
        else:
            result += tl.where(piece_of == low, _expanded(expand, part), 0.0)
            for piece in range(low + 1, tl.max(piece_of, 0) + 1):
                part = _shrunk(shares, piece, True, SHRUNK, RANK, LANES, SHARES, SHARE_LANES)
                result += tl.where(piece_of == piece, _expanded(expand, part), 0.0)
    result *= scale
    if BIAS:
        result += tl.load(bias + row, mask=row < results, other=0.0).to(tl.float32)
    if GATED:
        up = tl.sum(other, 1)
        if LORA and slot >= 0:
            up += _expanded(also, other_part)
        up *= scale
        if BIAS:
            up += tl.load(bias + results + row, mask=row < results, other=0.0).to(tl.float32)
        result = result / (1.0 + tl.exp(-result)) * up
    if RESIDUAL:
        result += tl.load(residual + row, mask=row < results, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < results)


@triton.jit
def _shrink_row(
    x, norm, slot, a, ranks, shares, arrived, columns, program,
    NORM: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, SHARES: tl.constexpr, SPAN: tl.constexpr,
    TAKEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Shrink the row to a few numbers over one share of its columns, not yet divided by its root mean square."""
    number = program // SHARES * TAKEN + tl.arange(0, TAKEN)
    share = program % SHARES
    column = share * SPAN + tl.arange(0, SPAN)
    here = column < columns
    real = (number < SHRUNK) & (number % RANK < tl.load(ranks + slot, mask=slot >= 0, other=0))
    source = a + (tl.maximum(slot, 0).to(tl.int64) * SHRUNK + number)[:, None] * columns + column[None, :]
    w = tl.load(source, mask=real[:, None] & here[None, :], other=0.0)
    if PDL:
        gdc_wait()
    value = tl.load(x + column, mask=here, other=0.0).to(tl.float32)
    if NORM:
        value *= tl.load(norm + column, mask=here, other=0.0).to(tl.float32)
    tl.store(shares + share * SHRUNK + number, tl.sum(w.to(tl.float32) * value[None, :], 1), mask=number < SHRUNK)
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release")


@triton.jit
def _shrunk(
    shares, piece, ready,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, LANES: tl.constexpr, SHARES: tl.constexpr, SHARE_LANES: tl.constexpr,
):  # fmt: skip
    """Return a piece's shrink in its shares, (SHARE_LANES, LANES), or nothing where it is not ready."""
    share, lane = tl.arange(0, SHARE_LANES), tl.arange(0, LANES)
    source = shares + share[:, None] * SHRUNK + piece * RANK + lane[None, :]
    known = (share < tl.where(ready, SHARES, 0))[:, None] & (lane < RANK)[None, :]
    return tl.load(source, mask=known, other=0.0, cache_modifier=".cg")


@triton.jit
def _expanded(expand, part):
    """Return the delta of the rows that ``expand`` is of, as if all were of one piece."""
    return tl.sum(expand.to(tl.float32) * tl.sum(part, 0)[None, :], 1)
