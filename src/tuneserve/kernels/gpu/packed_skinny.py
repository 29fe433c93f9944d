"""One or a few rows times a weight of 4 or 8 bits, on the matrix units, each weight read once.

A warp takes fragments of some rows of the weight; the warps of a program share its columns, and a fragment's products
are summed before its scale is applied, in float32. The next words are always on their way.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.activation import activated
from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.matvec import matvec_reference
from tuneserve.kernels.gpu.packed import PackedWeight, block_of, shared_of, unpacked
from tuneserve.kernels.gpu.unpack import load_table, operands, table_of
from tuneserve.spec import Activation

# Columns from which more warps share a row, and fragments of rows up to which more of them share those of a program.
_LONG, _SHORT = 8192, 256


def packed_skinny_reference(
    x: torch.Tensor,
    weight: PackedWeight,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    activation: Activation = "silu",
) -> torch.Tensor:
    """Return what :func:`packed_skinny` does, in float32, rounded once."""
    return matvec_reference(x, unpacked(weight), bias=bias, residual=residual, gated=gated, activation=activation)


def packed_skinny(
    x: torch.Tensor,
    weight: PackedWeight,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    activation: Activation = "silu",
    out: torch.Tensor,
) -> torch.Tensor:
    """Multiply up to 32 rows; accumulates in float32 and rounds once.

    Args:
        x: (count, columns), contiguous, bfloat16 on a GPU, ``count`` at most 32.
        weight: (rows, columns); where ``gated``, the first half of the rows is the gate, a multiple of 16.
        bias: (rows), added to the product.
        residual: (count, rows of the result), added to the result.
        activation: of the gate, where ``gated``.
        out: (count, rows of the result), may be ``residual``.
    """
    count, fragments = len(x), len(weight.words)
    results = weight.rows // 2 if gated else weight.rows
    assert count <= 32 and not (gated and results % 16)
    padded = 8 if count <= 8 else 16 if count <= 16 else 32
    tiles, steps, warps, ahead = shape_of(weight, padded, gated)
    launch = dependent(_packed_skinny)
    _packed_skinny[(triton.cdiv(fragments // 2 if gated else fragments, tiles),)](
        x, weight.words, weight.scales, weight.minima, bias, residual, out, count, results, weight.columns,
        weight.words.shape[1], weight.scales.shape[1], table_of(weight),
        KIND=weight.kind, BLOCK=block_of(weight.kind), SHARED=shared_of(weight), TILES=tiles, STEPS=steps,
        AHEAD=ahead, COUNT=padded, MINIMA=weight.minima is not None, BIAS=bias is not None,
        RESIDUAL=residual is not None, GATED=gated, ACTIVATION=activation, PTX=x.is_cuda, num_warps=warps,
        num_stages=1, **launch,
    )  # fmt: skip
    return out


def shape_of(weight: PackedWeight, count: int, gated: bool) -> tuple[int, int, int, int]:
    """Return fragments of rows per program, blocks of columns at a time, warps and how many such times ahead."""
    cheap, short = weight.kind == "int4", len(weight.words) <= _SHORT
    if count <= 8:
        if gated:
            return (1, 4, 2, 2) if cheap else (1, 8, 4, 1)
        if cheap:
            return (1, 16, 16, 2) if weight.columns >= _LONG else (1, 16, 4, 2)
        return (1, 16, 8, 2) if short else (1, 16, 4, 2)
    if gated:
        return (2, 2, 2, 1) if cheap else (1, 4, 4, 1)
    return (2, 8, 8, 1) if short else (2, 4, 4, 1)


@triton.jit
def _packed_skinny(
    x, words, scales, minima, bias, residual, out, count, results, columns, blocks, groups, table,
    KIND: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr, TILES: tl.constexpr, STEPS: tl.constexpr,
    AHEAD: tl.constexpr, COUNT: tl.constexpr, MINIMA: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, PTX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    ROWS: tl.constexpr = 16 * TILES
    step = tl.arange(0, STEPS)
    token = tl.arange(0, COUNT)
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    last = tl.cdiv(results, 16)
    real = (tile < last)[None, :, None]
    word_at = words + (tile[None, :, None] * blocks + step[:, None, None]) * 128 + tl.arange(0, 128)[None, None, :]
    up_at = word_at + last * blocks * 128
    # Tokens come first, for lanes to be laid out along them.
    eight, eights = tl.arange(0, 8)[:, None, None, None], tl.arange(0, COUNT // 8)[None, None, :, None]
    valid = eights * 8 + eight < count
    x_at = x + (eights * 8 + eight) * columns + (step * BLOCK)[None, :, None, None] + tl.arange(0, 32)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale_at = (row // 16 * groups * 16 + row % 16)[None, :]
    has = (row // 16 < last)[None, :]
    # The next words and scales are always on their way, the first before the kernel that makes ``x`` is done.
    w, w_scale = _words(word_at, scales, minima, scale_at, 0, step, blocks, real, has, SHARED, MINIMA)
    if AHEAD == 2:
        w_next, w_next_scale = _words(
            word_at, scales, minima, scale_at, STEPS, step, blocks, real, has, SHARED, MINIMA
        )  # fmt: skip
    if GATED:
        up_scale_at = scale_at + last * groups * 16
        v, v_scale = _words(up_at, scales, minima, up_scale_at, 0, step, blocks, real, has, SHARED, MINIMA)
        if AHEAD == 2:
            v_next, v_next_scale = _words(
                up_at, scales, minima, up_scale_at, STEPS, step, blocks, real, has, SHARED, MINIMA
            )  # fmt: skip
    entries = load_table(table, KIND, PTX)
    if PDL:
        gdc_wait()
    total = tl.zeros((STEPS, ROWS, COUNT), tl.float32)
    other = tl.zeros((STEPS, ROWS, COUNT), tl.float32)
    for start in range(0, blocks, STEPS):
        within = valid & (start + step < blocks)[None, :, None, None]
        values = tl.load(x_at + start * BLOCK, mask=within, other=0.0)
        more = tl.load(x_at + start * BLOCK + 32, mask=within, other=0.0) if BLOCK == 64 else values
        following = start + AHEAD * STEPS
        new, new_scale = _words(word_at, scales, minima, scale_at, following, step, blocks, real, has, SHARED, MINIMA)
        total = _add(total, w, values, more, w_scale, entries, KIND, SHARED, MINIMA, PTX)
        if AHEAD == 2:
            w, w_scale = w_next, w_next_scale
            w_next, w_next_scale = new, new_scale
        else:
            w, w_scale = new, new_scale
        if GATED:
            new, new_scale = _words(
                up_at, scales, minima, up_scale_at, following, step, blocks, real, has, SHARED, MINIMA
            )  # fmt: skip
            other = _add(other, v, values, more, v_scale, entries, KIND, SHARED, MINIMA, PTX)
            if AHEAD == 2:
                v, v_scale = v_next, v_next_scale
                v_next, v_next_scale = new, new_scale
            else:
                v, v_scale = new, new_scale
    result = tl.sum(total, 0)
    if BIAS:
        result += tl.load(bias + row, mask=row < results, other=0.0).to(tl.float32)[:, None]
    if GATED:
        up = tl.sum(other, 0)
        if BIAS:
            up += tl.load(bias + results + row, mask=row < results, other=0.0).to(tl.float32)[:, None]
        result = activated(result, ACTIVATION) * up
    place = token[None, :] * results + row[:, None]
    real = (row < results)[:, None] & (token < count)[None, :]
    if RESIDUAL:
        result += tl.load(residual + place, mask=real, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def _words(
    word_at, scales, minima, scale_at, start, step, blocks, real, has, SHARED: tl.constexpr, MINIMA: tl.constexpr,
):  # fmt: skip
    """Return the words of some blocks of columns from ``start`` on, and their scales: two for each, then minima."""
    block = start + step
    here = block < blocks
    words = tl.load(
        word_at + start * 128, mask=here[:, None, None] & real, other=0, eviction_policy="evict_first"
    )  # fmt: skip
    if SHARED == 0:
        group = block * 2
    elif SHARED == -1:
        group = block * 0
    else:
        group = block // SHARED
    at = group[:, None] * 16 + scale_at
    inside = here[:, None] & has
    scale = tl.load(scales + at, mask=inside, other=0.0)
    second = tl.load(scales + at + 16, mask=inside, other=0.0) if SHARED == 0 else scale
    if MINIMA:
        least = tl.load(minima + at, mask=inside, other=0.0)
        second_least = tl.load(minima + at + 16, mask=inside, other=0.0) if SHARED == 0 else least
    else:
        least = scale
        second_least = scale
    return words, (scale, second, least, second_least)


@triton.jit
def _add(
    total, words, values, more, scales, table,
    KIND: tl.constexpr, SHARED: tl.constexpr, MINIMA: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Return ``total`` with the products of one block of columns for each step."""
    STEPS: tl.constexpr = words.shape[0]
    ROWS: tl.constexpr = words.shape[1] * 16
    # Lanes are (8 rows, 4 threads of columns), their words (pairs of columns, upper and lower rows).
    ordered = words.reshape(STEPS, words.shape[1], 8, 4, 2, 2).permute(0, 1, 5, 2, 3, 4).reshape(STEPS, ROWS, 8)
    x0, x1 = _by_products(values)
    scale, second, least, second_least = scales
    if KIND == "int4" or KIND == "nf4":
        w0, w1, w2, w3 = operands(ordered, table, KIND, PTX, values.dtype)
        x2, x3 = _by_products(more)
        product = tl.dot(w1, x1, tl.dot(w0, x0))
        if SHARED == 0:
            total += product * scale[:, :, None]
            product = tl.dot(w3, x3, tl.dot(w2, x2))
        else:
            product = tl.dot(w3, x3, tl.dot(w2, x2, product))
        total += product * second[:, :, None]
    else:
        w0, w1 = operands(ordered, table, KIND, PTX, values.dtype)
        total += tl.dot(w1, x1, tl.dot(w0, x0)) * scale[:, :, None]
    if MINIMA:
        # Joined as the operands are, for the products to have one layout.
        one = tl.full((STEPS, ROWS, 8), 1.0, values.dtype)
        ones = tl.join(one, one).reshape(STEPS, ROWS, 16)
        sums = tl.dot(ones, x1, tl.dot(ones, x0))
        if SHARED == 0:
            total += sums * least[:, :, None]
            sums = tl.dot(ones, x3, tl.dot(ones, x2))
        elif KIND == "int4":
            sums = tl.dot(ones, x3, tl.dot(ones, x2, sums))
        total += sums * second_least[:, :, None]
    return total


@triton.jit
def _by_products(values):
    """Return (S, 16, N) of the columns of each product, of values (8, S, N / 8, 32)."""
    steps: tl.constexpr = values.shape[1]
    eights: tl.constexpr = values.shape[2]
    # Column threads, products, columns of a product.
    ordered = values.reshape(8, steps, eights, 4, 2, 4).permute(1, 3, 5, 2, 0, 4)
    return ordered.reshape(steps, 16, eights * 8, 2).split()
