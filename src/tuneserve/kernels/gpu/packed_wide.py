"""Many rows times a weight of 4 or 8 bits: it becomes 16 bits in registers, and the matrix units take it from there.

A program takes 64 or more rows of the weight and up to 128 of the input over a share of the columns, a block of them at
a time. Where there are several shares, the last program of a tile adds them up, always in the same order.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.packed import PackedWeight, block_of, shared_of
from tuneserve.kernels.gpu.packed_skinny import packed_skinny_reference
from tuneserve.kernels.gpu.unpack import load_table, operands, table_of

__all__ = ["WideScratch", "packed_wide", "packed_wide_reference"]

packed_wide_reference = packed_skinny_reference
_REORDER_ROWS = 16
# One wave of programs on the largest GPUs, of those of four warps two on a multiprocessor; blocks in the least share.
_PROGRAMS = 132
_LEAST_SHARE = 8
_MOST_SHARES = 16


@dataclass(frozen=True)
class WideScratch:
    """Where the shares of products are added up, of all products of a stream.

    Attributes:
        partials: float32, at least :data:`PARTIALS` numbers.
        arrived: int32 (programs in a wave), zero between two launches.
    """

    partials: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def of(cls, device: torch.device, memory: torch.Tensor | None = None) -> "WideScratch":
        """Return scratch, in ``memory`` that is used for nothing else meanwhile if that is enough."""
        partials = torch.empty(0) if memory is None else memory.view(torch.float32)
        if partials.numel() < PARTIALS:
            partials = torch.empty(PARTIALS, device=device)
        return cls(partials, torch.zeros(2 * _PROGRAMS, dtype=torch.int32, device=device))


# What a wave of programs has, each 64 times 128 numbers, or half as many of twice the size.
PARTIALS = 2 * _PROGRAMS * 64 * 128


def packed_wide(
    x: torch.Tensor,
    weight: PackedWeight,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scratch: WideScratch,
    out: torch.Tensor,
) -> torch.Tensor:
    """Multiply rows; accumulates in float32 and rounds once.

    Args:
        x: (count, columns), contiguous, bfloat16 on a GPU.
        weight: (rows, columns).
        bias: (rows), added to the product.
        residual: (count, rows), added to the result.
        scratch: used while it runs.
        out: (count, rows), may be ``residual``.
    """
    count, columns, fragments = len(x), weight.columns, len(weight.words)
    ordered = torch.empty_like(x)
    tiles, tokens, warps, stages = shape_of(count)
    grid = (triton.cdiv(fragments, tiles), triton.cdiv(count, tokens))
    blocks = weight.words.shape[1]
    shares = shares_of(grid[0] * grid[1], blocks, warps)
    share = triton.cdiv(blocks, shares)
    shares = triton.cdiv(blocks, share)
    assert shares == 1 or grid[0] * grid[1] * shares * 16 * tiles * tokens <= scratch.partials.numel()
    _reorder[(triton.cdiv(count, _REORDER_ROWS), triton.cdiv(columns, 256))](
        x, ordered, count, columns, ROWS=_REORDER_ROWS, num_warps=4, **dependent(_reorder)
    )
    _packed_wide[(*grid, shares)](
        ordered, weight.words, weight.scales, weight.minima, bias, residual, out, scratch.partials, scratch.arrived,
        count, weight.rows, columns, blocks, weight.scales.shape[1], share, table_of(weight),
        KIND=weight.kind, BLOCK=block_of(weight.kind), SHARED=shared_of(weight), TILES=tiles, COUNT=tokens,
        SHARES=shares, MINIMA=weight.minima is not None, BIAS=bias is not None, RESIDUAL=residual is not None,
        PTX=x.is_cuda, num_warps=warps, num_stages=stages, **dependent(_packed_wide),
    )  # fmt: skip
    return out


def shape_of(count: int) -> tuple[int, int, int, int]:
    """Return fragments of rows and rows of the input per program, warps and stages."""
    return 4, 32 if count <= 32 else 64 if count <= 64 else 128, 4, 4


def shares_of(tiles: int, blocks: int, warps: int) -> int:
    """Return how many programs share the columns of each of so many tiles, for all to run in one wave."""
    wave = _PROGRAMS if warps > 4 else 2 * _PROGRAMS
    return max(1, min(wave // tiles, blocks // _LEAST_SHARE, _MOST_SHARES))


@triton.jit
def _reorder(x, out, count, columns, ROWS: tl.constexpr, PDL: tl.constexpr):
    """Bring each 32 columns into the order in which the matrix units number them, 16 for a product."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * 256 + tl.arange(0, 256)
    inside = (row < count)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    # Threads of columns, products, pairs of columns, those of a pair.
    values = tl.load(x + place, mask=inside, other=0.0).reshape(ROWS, 8, 4, 2, 2, 2).permute(0, 1, 3, 4, 2, 5)
    tl.store(out + place, values.reshape(ROWS, 256), mask=inside)


@triton.jit
def _packed_wide(
    x, words, scales, minima, bias, residual, out, partials, arrived, count, rows, columns, blocks, groups, share,
    table, KIND: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr, TILES: tl.constexpr, COUNT: tl.constexpr,
    SHARES: tl.constexpr, MINIMA: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, PTX: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    ROWS: tl.constexpr = 16 * TILES
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
    fragments = tl.cdiv(rows, 16)
    real = (tile < fragments)[:, None]
    inside = row // 16 < fragments
    word_at = words + tile[:, None] * blocks * 128 + tl.arange(0, 128)[None, :]
    x_at = x + token.to(tl.int64)[:, None] * columns + tl.arange(0, BLOCK)[None, :]
    scale_at = row // 16 * groups * 16 + row % 16
    present = (token < count)[:, None]
    entries = load_table(table, KIND, PTX)
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, blocks)
    # Always on its way: what is loaded for the end of a product is not in Triton's pipeline.
    if SHARED != 0 and not MINIMA:
        scale = _scale(scales, scale_at, begin, blocks, inside, SHARED)
    if PDL:
        gdc_wait()
    total = tl.zeros((ROWS, COUNT), tl.float32)
    for block in range(begin, end):
        word = tl.load(word_at + block * 128, mask=real, other=0)
        value = tl.load(x_at + block * BLOCK, mask=present, other=0.0)
        weight = _operand(word, entries, KIND, PTX, value.dtype)
        if SHARED == 0 or MINIMA:
            # What the matrix units sum must have one scale: these are too few or too many columns.
            if SHARED == 0:
                at = scale_at + block * 32
            elif SHARED == -1:
                at = scale_at
            else:
                at = scale_at + block // SHARED * 16
            own = tl.load(scales + at, mask=inside, other=0.0)
            other = tl.load(scales + at + 16, mask=inside, other=0.0) if SHARED == 0 else own
            half = tl.arange(0, BLOCK) >= 32
            scaled = weight.to(tl.float32) * tl.where(half[None, :], other[:, None], own[:, None])
            if MINIMA:
                least = tl.load(minima + at, mask=inside, other=0.0)
                more = tl.load(minima + at + 16, mask=inside, other=0.0) if SHARED == 0 else least
                scaled += tl.where(half[None, :], more[:, None], least[:, None])
            total = tl.dot(scaled.to(value.dtype), value.T, total)
        else:
            scale_next = _scale(scales, scale_at, block + 1, blocks, inside, SHARED)
            total += tl.dot(weight, value.T) * scale[:, None]
            scale = scale_next
    whole = True
    if SHARES > 1:
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        part = (tl.arange(0, ROWS) * COUNT)[:, None] + tl.arange(0, COUNT)[None, :]
        mine = partials + program.to(tl.int64) * SHARES * ROWS * COUNT
        tl.store(mine + tl.program_id(2) * ROWS * COUNT + part, total)
        tl.debug_barrier()
        whole = tl.atomic_add(arrived + program, 1, sem="acq_rel") == SHARES - 1
        if whole:
            total = tl.zeros((ROWS, COUNT), tl.float32)
            for each in range(SHARES):
                total += tl.load(mine + each * ROWS * COUNT + part, cache_modifier=".cg")
            tl.store(arrived + program, 0)
    if whole:
        if BIAS:
            total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        place = token.to(tl.int64)[None, :] * rows + row[:, None]
        valid = (row < rows)[:, None] & (token < count)[None, :]
        if RESIDUAL:
            total += tl.load(residual + place, mask=valid, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _scale(scales, at, block, blocks, inside, SHARED: tl.constexpr):
    """Return the scale of each row in one block of columns, the last one beyond it."""
    group = 0 if SHARED == -1 else tl.minimum(block, blocks - 1) // SHARED
    return tl.load(scales + at + group * 16, mask=inside, other=0.0)


@triton.jit
def _operand(words, entries, KIND: tl.constexpr, PTX: tl.constexpr, DTYPE: tl.constexpr):
    """Return (rows, columns of a block) of fragments (tiles, 128), columns in the order of :func:`_reorder`."""
    ROWS: tl.constexpr = words.shape[0] * 16
    ordered = words.reshape(words.shape[0], 8, 4, 2, 2).permute(0, 4, 1, 3, 2).reshape(1, ROWS, 8)
    if KIND == "int4" or KIND == "nf4":
        w0, w1, w2, w3 = operands(ordered, entries, KIND, PTX, DTYPE)
        both = tl.join(tl.join(w0, w2), tl.join(w1, w3))
        return both.reshape(ROWS, 16, 2, 2).permute(0, 2, 3, 1).reshape(ROWS, 64)
    else:  # noqa: RET505
        w0, w1 = operands(ordered, entries, KIND, PTX, DTYPE)
        return tl.join(w0, w1).reshape(ROWS, 16, 2).permute(0, 2, 1).reshape(ROWS, 32)
