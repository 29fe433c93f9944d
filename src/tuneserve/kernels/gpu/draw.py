"""Parts of :mod:`tuneserve.kernels.gpu.sample`: a row's log-probabilities, and a draw from what its filters keep.

Tokens are ordered by their distance to the likeliest, whose bits, as an integer, are in the order of the numbers.
"""

import triton
import triton.language as tl


@triton.jit
def edited(source, counts, token, inside, counted, repetition, presence, frequency):
    """Return logits with penalties, for tokens below ``counted``; what is not a number is above all, to be found."""
    value = tl.load(source + token, mask=inside, other=float("-inf"))
    count = tl.load(counts + token, mask=inside & (token < counted), other=0)
    value = tl.where((count & 1) != 0, tl.where(value < 0, value * repetition, value / repetition), value)
    value -= tl.where(count > 1, (presence + frequency * (count >> 1)).to(tl.float32), 0.0)
    return tl.where(value != value, float("inf"), value)


@triton.jit
def weights_of(
    source, counts, start, size, counted, repetition, presence, frequency, peak, temperature, cut, least, BLOCK
):
    """Return the weights of some tokens, 0 beyond ``cut`` bits of distance to the largest or below ``least``."""
    token = start + tl.arange(0, BLOCK)
    value = edited(source, counts, token, token < size, counted, repetition, presence, frequency)
    distance = peak - value
    weight = tl.exp2(-distance / temperature * 1.4426950408889634)
    return tl.where((distance.to(tl.int32, bitcast=True) <= cut) & (weight >= least), weight, 0.0)


@triton.jit
def _reaching(
    source, counts, size, counted, repetition, presence, frequency, peak, temperature, highest, goal,
    COUNTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the least distance, as bits, within which tokens amount to a goal: so many, or so much of the weight."""
    low, high = tl.full((), 0, tl.int32), highest
    while low < high:
        middle = low + (high - low) // 2
        amount = tl.full((), 0.0, tl.float64)
        for start in range(0, size, BLOCK):
            if COUNTED:
                token = start + tl.arange(0, BLOCK)
                value = edited(source, counts, token, token < size, counted, repetition, presence, frequency)
                near = (peak - value).to(tl.int32, bitcast=True) <= middle
                amount += tl.sum((near & (token < size)).to(tl.int32), 0)
            else:
                weight = weights_of(
                    source, counts, start, size, counted, repetition, presence, frequency, peak, temperature,
                    middle, 0.0, BLOCK,
                )  # fmt: skip
                amount += tl.sum(weight, 0).to(tl.float64)
        enough = amount >= goal
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit
def _nearest(distances, wanted):
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
def _set_aside(
    source, counts, size, counted, repetition, presence, frequency, peak, limit, kept, kept_ids,
    BLOCK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Keep the tokens within a distance, as bits, in order and as far as there is room; return how many there are."""
    found = tl.full((), 0, tl.int32)
    for start in range(0, size, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = edited(source, counts, token, token < size, counted, repetition, presence, frequency)
        near = ((peak - value).to(tl.int32, bitcast=True) <= limit) & (token < size)
        place = found + tl.cumsum(near.to(tl.int32), 0) - 1
        tl.store(kept + place, value, mask=near & (place < KEPT))
        tl.store(kept_ids + place, token, mask=near & (place < KEPT))
        found += tl.sum(near.to(tl.int32), 0)
    tl.debug_barrier()
    return found


@triton.jit
def log_sum(
    source, counts, size, asked, kept, kept_ids, logprobs, likeliest,
    BLOCK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Store the likeliest tokens with their log-probabilities; return the logarithm of what they are divided by."""
    none = tl.full((), 0, tl.int32)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        token = start + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, edited(source, counts, token, token < size, none, 1.0, 0.0, 0.0))
    peak = tl.max(highest, 0)
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, size, BLOCK):
        weight = weights_of(source, counts, start, size, none, 1.0, 0.0, 0.0, peak, 1.0, 0x7F800000, 0.0, BLOCK)
        total += tl.sum(weight, 0).to(tl.float64)
    whole = peak + tl.log(total.to(tl.float32))
    if asked > 0:
        limit = _nearest(peak - highest, tl.minimum(asked, size))
        found = _set_aside(source, counts, size, none, 1.0, 0.0, 0.0, peak, limit, kept, kept_ids, BLOCK, KEPT)
        listed = found <= KEPT
        if not listed:
            found = size
        before, before_at = float("inf"), tl.full((), -1, tl.int32)
        for rank in range(tl.minimum(asked, size)):
            best, best_at = float("-inf"), tl.full((), 0x7FFFFFFF, tl.int32)
            for start in range(0, found, BLOCK):
                at = start + tl.arange(0, BLOCK)
                value = tl.load((kept if listed else source) + at, mask=at < found, other=float("-inf"))
                # After the one before: less likely, or as likely and later.
                left = (at < found) & ((value < before) | ((value == before) & (at > before_at)))
                value = tl.where(left, value, float("-inf"))
                top = tl.max(value, 0)
                where = tl.min(tl.where(left & (value == top), at, 0x7FFFFFFF), 0)
                best_at = tl.where((top > best) | (best_at == 0x7FFFFFFF), where, best_at)
                best = tl.maximum(top, best)
            before, before_at = best, best_at
            token = best_at
            if listed:
                token = tl.load(kept_ids + best_at)
            tl.store(logprobs + 1 + rank, best - whole)
            tl.store(likeliest + rank, token)
        tl.debug_barrier()
    return whole


@triton.jit
def draw(
    source, counts, size, counted, repetition, presence, frequency, peak, highest, temperature, top_k, top_p, min_p,
    uniform, kept, kept_ids, BLOCK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Return the token that a random number draws."""
    ALL: tl.constexpr = 0x7F800000
    cut = tl.full((), ALL, tl.int32)
    least = min_p.to(tl.float32)
    some = (top_k > 0) & (top_k < size)
    total = tl.full((), 0.0, tl.float64)
    if (top_p < 1.0) & (not some):
        for start in range(0, size, BLOCK):
            weight = weights_of(
                source, counts, start, size, counted, repetition, presence, frequency, peak, temperature, ALL, 0.0,
                BLOCK,
            )  # fmt: skip
            total += tl.sum(weight, 0).to(tl.float64)
    # What is farther than this no filter keeps.
    limit = cut
    if some:
        if top_k <= BLOCK:
            limit = _nearest(peak - highest, top_k)
    elif top_p < 1.0:
        limit = _bits(-temperature * tl.log(((1.0 - top_p) * total / size).to(tl.float32)))
    elif min_p > 0.0:
        limit = _bits(-temperature * tl.log(least))
    listed = tl.full((), 0, tl.int32)
    if limit < ALL:
        found = _set_aside(
            source, counts, size, counted, repetition, presence, frequency, peak, limit, kept, kept_ids, BLOCK, KEPT
        )
        if found <= KEPT:
            listed = tl.full((), 1, tl.int32)
            source = kept
            size = found
            counted = tl.full((), 0, tl.int32)
    if some:
        cut = _reaching(
            source, counts, size, counted, repetition, presence, frequency, peak, temperature, limit,
            top_k.to(tl.float64), True, BLOCK,
        )  # fmt: skip
        for start in range(0, size, BLOCK):
            weight = weights_of(
                source, counts, start, size, counted, repetition, presence, frequency, peak, temperature, cut, 0.0,
                BLOCK,
            )  # fmt: skip
            total += tl.sum(weight, 0).to(tl.float64)
    if top_p < 1.0:
        cut = _reaching(
            source, counts, size, counted, repetition, presence, frequency, peak, temperature,
            tl.minimum(cut, limit), top_p * total, False, BLOCK,
        )  # fmt: skip
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, size, BLOCK):
        weight = weights_of(
            source,
            counts,
            start,
            size,
            counted,
            repetition,
            presence,
            frequency,
            peak,
            temperature,
            cut,
            least,
            BLOCK,
        )
        total += tl.sum(weight, 0).to(tl.float64)
    point = uniform * total
    before = tl.full((), 0.0, tl.float64)
    chosen = tl.full((), -1, tl.int32)
    last = tl.full((), 0, tl.int32)
    for start in range(0, size, BLOCK):
        if chosen < 0:
            weight = weights_of(
                source, counts, start, size, counted, repetition, presence, frequency, peak, temperature, cut, least,
                BLOCK,
            )  # fmt: skip
            ends = before + tl.cumsum(weight.to(tl.float64), 0)
            at = start + tl.arange(0, BLOCK)
            # The first whose running sum exceeds the point, which none of weight 0 is.
            first = tl.min(tl.where((ends > point) & (weight > 0), at, 0x7FFFFFFF), 0)
            chosen = tl.where(first < size, first, chosen)
            last = tl.maximum(last, tl.max(tl.where(weight > 0, at, 0), 0))
            before += tl.sum(weight, 0).to(tl.float64)
    # Sums in another order may fall short of the point by the last bit.
    chosen = tl.where(chosen < 0, last, chosen)
    if listed != 0:
        chosen = tl.load(kept_ids + chosen)
    return chosen


@triton.jit
def _bits(distance):
    """Return a distance, and a little more, as bits."""
    return tl.maximum(distance * 1.00001 + 1e-6, 0.0).to(tl.int32, bitcast=True)
