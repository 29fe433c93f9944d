"""Where top-k and top-p cut a row of logits, found by many programs without a sort.

Tokens are ordered by their distance to the likeliest, whose bits, as an integer, are in the order of the numbers. Each
round of top-p cuts the interval in which its last token lies into several, and measures how much of the weight lies
within each; what is left after two is few tokens of any distribution that is not flat. For top-k they are few at once:
of as many parts of the vocabulary each has at least one token as likely as its largest.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.survey import (
    BASES,
    CHUNK,
    FOUND,
    KEPT_SUMS,
    PARTS,
    PEAKS,
    SLOTS,
    WAYS,
    amounts_of,
    finite,
    interval_of,
    listed_of,
    maxima_of,
    temperature_of,
    thresholds_of,
    weigh,
    whole_row,
)


@triton.jit
def nearest(distances, wanted):
    """Return the least distance, as bits, within which there are so many of a block's."""
    low, high = tl.full((), 0, tl.int32), tl.full((), 0x7F800000, tl.int32)
    bits = distances.to(tl.int32, bitcast=True)
    while low < high:
        middle = low + (high - low) // 2
        enough = tl.sum((bits <= middle).to(tl.int32), 0) >= wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit
def _left_by(scratch, chunks, goal, low, ROUND: tl.constexpr, P: tl.constexpr):
    """Return the interval in which a round found that the weight comes to its goal."""
    way, chunk = tl.arange(0, WAYS), tl.arange(0, P)
    at = chunk[:, None] * WAYS + way[None, :]
    amounts = tl.load(amounts_of(scratch, ROUND, P) + at, mask=(chunk < chunks)[:, None], other=0.0)
    amounts = tl.sum(amounts.to(tl.float64), 0)
    index = tl.minimum(tl.sum((amounts < goal).to(tl.int32), 0), WAYS - 1)
    thresholds = thresholds_of(scratch, ROUND, P)
    below = tl.load(thresholds + tl.maximum(index - 1, 0))
    return tl.where(index > 0, below, low), tl.load(thresholds + index)


@triton.jit
def narrow_kernel(
    logits, lengths, numbers, top_k, scratch, vocabulary, chunks, stride,
    ROUND: tl.constexpr, P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Measure a chunk within the thresholds of a round, or find how far the likeliest top-k reach."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wanted, top_p = tl.load(top_k + row), tl.load(numbers + row * 6 + 1)
    some = (wanted > 0) & (wanted < vocabulary)
    greedy = tl.load(numbers + row * 6) <= 0
    if (tl.load(lengths + row) == 0) | greedy | (~some & (top_p >= 1)) | (some & ((ROUND > 0) | (chunk > 0))):
        return
    scratch += row * stride
    temperature = temperature_of(numbers, row)
    peak, shares = whole_row(scratch, chunks, temperature, PEAKS, P)
    if finite(peak) != peak:
        return
    if some:
        part = tl.arange(0, P * PARTS)
        maxima = tl.load(maxima_of(scratch, P) + part, mask=part < chunks * PARTS, other=float("-inf"))
        limit = nearest(peak - maxima, wanted).to(tl.float32, bitcast=True)
        tl.store(interval_of(scratch, 0, P), -1.0)
        tl.store(interval_of(scratch, 0, P) + 1, limit)
    else:
        total = tl.sum(shares, 0)
        low = tl.full((), -1.0, tl.float32)
        if ROUND == 0:
            # What is farther is, all together, less than what is left out; a little more, for rounding.
            high = -temperature * tl.log(((1.0 - top_p) * total / vocabulary).to(tl.float32))
            high = tl.maximum(high * 1.00001 + 1e-6, 0.0)
        else:
            low, high = _left_by(scratch, chunks, top_p * total, low, 0, P)
            if chunk == 0:
                tl.store(interval_of(scratch, 0, P), low)
                tl.store(interval_of(scratch, 0, P) + 1, high)
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        value = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
        distance = peak - value
        weight = weigh(distance, temperature)
        begin = tl.maximum(low, 0.0)
        thresholds, amounts = thresholds_of(scratch, ROUND, P), amounts_of(scratch, ROUND, P) + chunk * WAYS
        for way in tl.static_range(WAYS):
            threshold = high
            if way + 1 < WAYS:
                threshold = begin + (high - begin) * ((way + 1) / WAYS)
            if chunk == 0:
                tl.store(thresholds + way, threshold)
            amount = tl.sum(tl.where(distance <= threshold, weight, 0.0), 0)
            tl.store(amounts + way, amount)


@triton.jit
def gather_kernel(
    logits, lengths, numbers, top_k, scratch, vocabulary, chunks, stride, P: tl.constexpr, PDL: tl.constexpr
):
    """Sum up what of a chunk is surely kept, and list the distances of what may be."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if (tl.load(lengths + row) == 0) | (tl.load(numbers + row * 6) <= 0):
        return
    scratch += row * stride
    wanted, top_p = tl.load(top_k + row), tl.load(numbers + row * 6 + 1)
    temperature = temperature_of(numbers, row)
    peak, shares = whole_row(scratch, chunks, temperature, PEAKS, P)
    if finite(peak) != peak:
        return
    # What is within the lower end is kept, and what is beyond the upper one is not; between, tokens are listed.
    low, high = tl.full((), float("inf"), tl.float32), tl.full((), float("inf"), tl.float32)
    if (wanted > 0) & (wanted < vocabulary):
        low, high = tl.load(interval_of(scratch, 0, P)), tl.load(interval_of(scratch, 0, P) + 1)
    elif top_p < 1:
        low = tl.load(interval_of(scratch, 0, P))
        low, high = _left_by(scratch, chunks, top_p * tl.sum(shares, 0), low, 1, P)
    if chunk == 0:
        tl.store(interval_of(scratch, 1, P), low)
        tl.store(interval_of(scratch, 1, P) + 1, high)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
    distance = peak - value
    weight = weigh(distance, temperature)
    near = tl.where(distance <= low, weight, 0.0)
    least = tl.load(numbers + row * 6 + 2).to(tl.float32)
    tl.store(scratch + BASES * P + chunk, tl.sum(near, 0))
    tl.store(scratch + KEPT_SUMS * P + chunk, tl.sum(tl.where(near >= least, near, 0.0), 0))
    between = (distance > low) & (distance <= high) & (token < vocabulary)
    place = tl.cumsum(between.to(tl.int32), 0) - 1
    tl.store(listed_of(scratch, P) + chunk * SLOTS + place, distance, mask=between & (place < SLOTS))
    tl.store(scratch + FOUND * P + chunk, tl.sum(between.to(tl.int32), 0).to(tl.float32))
