"""The likeliest token of each row of logits, given to the next step on the device."""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent

_CHUNK = 4096


def greedy_reference(logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor) -> None:
    """Do what :func:`greedy` does."""
    best = logits.masked_fill(logits.isnan(), torch.inf).max(-1)
    ids.copy_(torch.where(best.values.isfinite(), best.indices, -1))
    lengths.add_(lengths.clamp(max=1))


def greedy_scratch(rows: int, device: torch.device) -> torch.Tensor:
    """Return scratch for so many rows, which each launch leaves as it was."""
    return torch.full((rows, 2), -(2**63), dtype=torch.int64, device=device).mul_(torch.tensor([1, 0], device=device))


def greedy(logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, scratch: torch.Tensor) -> None:
    """Put the first of the likeliest tokens into ``ids`` and count it in ``lengths``.

    Args:
        logits: float32 (rows, vocabulary); a row whose largest is not finite gives -1.
        ids: int64 (rows).
        lengths: int32 (rows); 0 stays 0.
        scratch: from :func:`greedy_scratch`.
    """
    rows, vocabulary = logits.shape
    chunks = triton.cdiv(vocabulary, _CHUNK)
    _greedy[(rows, chunks)](
        logits, ids, lengths, scratch, vocabulary, chunks, CHUNK=_CHUNK, num_warps=4, **dependent(_greedy)
    )


@triton.jit
def _greedy(logits, ids, lengths, scratch, vocabulary, chunks, CHUNK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
    # What is not a number is above all numbers, so that it is found.
    value = tl.where(value != value, float("inf"), value)
    # The order of these integers is that of the floats, and among equal ones the lowest token is the highest.
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    packed = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)
    tl.atomic_max(scratch + row * 2, tl.max(packed, 0), sem="acq_rel")
    before = tl.atomic_add(scratch + row * 2 + 1, 1, sem="acq_rel")
    if before + 1 == chunks:
        best = tl.atomic_xchg(scratch + row * 2, -9223372036854775808, sem="acq_rel")
        tl.store(scratch + row * 2 + 1, 0)
        # Infinity, either way, as these integers have it.
        broken = (best >> 32 == 2139095040) | (best >> 32 == -2139095041)
        tl.store(ids + row, tl.where(broken, -1, 0x7FFFFFFF - (best & 0x7FFFFFFF)))
        length = tl.load(lengths + row)
        tl.store(lengths + row, length + tl.minimum(length, 1))
