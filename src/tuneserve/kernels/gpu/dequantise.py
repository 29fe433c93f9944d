"""Weights of 4 or 8 bits to 16, for products of so many rows that the weight is best written out once before them."""

import torch
import triton
import triton.language as tl

from tuneserve.kernels.gpu.packed import PackedWeight, block_of, shared_of, unpacked
from tuneserve.kernels.gpu.unpack import load_table, operands, table_of

_STEPS, _WARPS = 8, 4


def dequantise_reference(weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return what :func:`dequantise` writes."""
    return unpacked(weight).to(dtype)


def dequantise(weight: PackedWeight, out: torch.Tensor) -> torch.Tensor:
    """Write a weight out; multiplies in float32 and rounds once.

    Args:
        weight: (rows, columns).
        out: (rows, columns), contiguous, bfloat16 on a GPU.
    """
    fragments, blocks = weight.words.shape[:2]
    _dequantise[(fragments, triton.cdiv(blocks, _STEPS))](
        weight.words, weight.scales, weight.minima, table_of(weight), out, weight.rows, weight.columns, blocks,
        weight.scales.shape[1], KIND=weight.kind, BLOCK=block_of(weight.kind), SHARED=shared_of(weight), STEPS=_STEPS,
        MINIMA=weight.minima is not None, PTX=out.is_cuda, num_warps=_WARPS,
    )  # fmt: skip
    return out


@triton.jit
def _dequantise(
    words, scales, minima, table, out, rows, columns, blocks, groups,
    KIND: tl.constexpr, BLOCK: tl.constexpr, SHARED: tl.constexpr, STEPS: tl.constexpr, MINIMA: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    fragment = tl.program_id(0)
    block = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    row = fragment * 16 + tl.arange(0, 16)
    word_at = words + (fragment * blocks + block)[:, None] * 128 + tl.arange(0, 128)[None, :]
    word = tl.load(word_at, mask=(block < blocks)[:, None], other=0, eviction_policy="evict_first")
    ordered = word.reshape(STEPS, 8, 4, 2, 2).permute(0, 4, 1, 2, 3).reshape(STEPS, 16, 8)
    entries = load_table(table, KIND, PTX)
    inside = (block < blocks)[:, None] & (row < rows)[None, :]
    place = out + row.to(tl.int64)[None, :, None] * columns + (block * BLOCK)[:, None, None]
    place += tl.arange(0, 32)[None, None, :]
    if SHARED == 0:
        group = block * 2
    elif SHARED == -1:
        group = block * 0
    else:
        group = block // SHARED
    group = ((fragment * groups + group) * 16)[:, None] + tl.arange(0, 16)[None, :]
    if KIND == "int4" or KIND == "nf4":
        w0, w1, w2, w3 = operands(ordered, entries, KIND, PTX, out.dtype.element_ty)
        _store(w0, w1, scales, minima, group, place, inside, MINIMA)
        if SHARED == 0:
            group += 16
        _store(w2, w3, scales, minima, group, place + 32, inside, MINIMA)
    else:
        w0, w1 = operands(ordered, entries, KIND, PTX, out.dtype.element_ty)
        _store(w0, w1, scales, minima, group, place, inside, MINIMA)


@triton.jit
def _store(first, second, scales, minima, group, place, inside, MINIMA: tl.constexpr):
    """Store 32 columns: for each of 4 threads, 4 of the one product and then 4 of the other."""
    steps: tl.constexpr = first.shape[0]
    values = tl.join(first, second).reshape(steps, 16, 4, 4, 2).permute(0, 1, 2, 4, 3).reshape(steps, 16, 32)
    values = values.to(tl.float32) * tl.load(scales + group, mask=inside, other=0.0)[:, :, None]
    if MINIMA:
        values += tl.load(minima + group, mask=inside, other=0.0)[:, :, None]
    tl.store(place, values.to(place.dtype.element_ty), mask=inside[:, :, None])
