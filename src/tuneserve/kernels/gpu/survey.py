"""What sampling asks of logits first: edits at few tokens, a summary of each chunk of a row, the likeliest tokens."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CHUNK = tl.constexpr(4096)
# Of each so many tokens the largest logit is kept.
PART = tl.constexpr(64)
PARTS = tl.constexpr(CHUNK.value // PART.value)
# How many ways an interval is cut at once, and how many tokens of a chunk can be listed.
WAYS = tl.constexpr(16)
SLOTS = tl.constexpr(128)
_LAST = tl.constexpr(0x7FFFFFFF)

# Where things lie in a row's scratch, in numbers: first some as long as there are chunks (padded), from the one named.
PEAKS, SUMS, FIRSTS, RAW_PEAKS, RAW_SUMS, BASES, KEPT_SUMS, FOUND = (tl.constexpr(index) for index in range(8))
LISTS = tl.constexpr(8)


def scratch_size(padded: int) -> int:
    """Return how many numbers the scratch of a row has, for so many chunks."""
    size: int = padded * (LISTS.value + PARTS.value + 2 * WAYS.value + SLOTS.value) + 2 * WAYS.value + 8
    return size


@triton.jit
def maxima_of(scratch, P: tl.constexpr):
    """Return where the largest of each part lie."""
    return scratch + LISTS * P


@triton.jit
def amounts_of(scratch, ROUND: tl.constexpr, P: tl.constexpr):
    """Return where what is within each threshold lies, for each chunk."""
    return scratch + (LISTS + PARTS + ROUND * WAYS) * P


@triton.jit
def listed_of(scratch, P: tl.constexpr):
    """Return where the distances of listed tokens lie."""
    return scratch + (LISTS + PARTS + 2 * WAYS) * P


@triton.jit
def thresholds_of(scratch, ROUND: tl.constexpr, P: tl.constexpr):
    """Return where the thresholds of a round lie."""
    return scratch + (LISTS + PARTS + 2 * WAYS + SLOTS) * P + ROUND * WAYS


@triton.jit
def interval_of(scratch, ROUND: tl.constexpr, P: tl.constexpr):
    """Return where the ends of the interval that a round has left lie."""
    return scratch + (LISTS + PARTS + 2 * WAYS + SLOTS) * P + 2 * WAYS + 2 * ROUND


@triton.jit
def weigh(distance, temperature):
    """Return the weights of tokens at a distance from the likeliest, whose own is 1."""
    return tl.exp2(-distance / temperature * 1.4426950408889634)


@triton.jit
def finite(peak):
    """Return the largest logit of a row of which something can be drawn, and 0 for others."""
    return tl.where((peak == float("inf")) | (peak == float("-inf")), 0.0, peak)


@triton.jit
def temperature_of(numbers, row):
    """Return a row's temperature, and at least what float32 can divide by."""
    return tl.maximum(tl.load(numbers + row * 6), 1e-30).to(tl.float32)


@triton.jit
def whole_row(scratch, chunks, temperature, FROM: tl.constexpr, P: tl.constexpr):
    """Return a row's largest logit and the weight of each chunk, float64 (P), from the peaks there and their sums."""
    chunk = tl.arange(0, P)
    peaks = tl.load(scratch + FROM * P + chunk, mask=chunk < chunks, other=float("-inf"))
    sums = tl.load(scratch + (FROM + 1) * P + chunk, mask=chunk < chunks, other=0.0)
    peak = tl.max(peaks, 0)
    return peak, (sums * weigh(finite(peak) - peaks, temperature)).to(tl.float64)


@triton.jit
def edit_kernel(
    logits, lengths, numbers, edits, used, tokens, bias, until, counts, raw, produced, vocabulary,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Change the logits of a row's edited tokens, and keep what they were; one program a row."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    if tl.load(lengths + row) == 0:
        return
    source = logits + row * vocabulary
    already = tl.load(produced + row)
    repetition = tl.load(numbers + row * 6 + 3).to(tl.float32)
    presence, frequency = tl.load(numbers + row * 6 + 4), tl.load(numbers + row * 6 + 5)
    begin = tl.load(edits + row)
    end = begin + tl.load(used + row)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < end
        token = tl.load(tokens + at, mask=inside, other=0)
        value = tl.load(source + token, mask=inside, other=0.0)
        tl.store(raw + at, value, mask=inside)
        value += tl.load(bias + at, mask=inside, other=0.0)
        count = tl.load(counts + at, mask=inside, other=0)
        value = tl.where((count & 1) != 0, tl.where(value < 0, value * repetition, value / repetition), value)
        value -= tl.where(count > 1, (presence + frequency * (count >> 1)).to(tl.float32), 0.0)
        banned = already < tl.load(until + at, mask=inside, other=0)
        tl.store(source + token, tl.where(banned, float("-inf"), value), mask=inside)


@triton.jit
def survey_kernel(
    logits, lengths, numbers, asked, scratch, vocabulary, stride, RAW: tl.constexpr, P: tl.constexpr, PDL: tl.constexpr
):
    """Store a chunk's largest logit, where it first is, the sum of its weights and the largest of each part."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(lengths + row) == 0:
        return
    if RAW and tl.load(asked + row) < 0:
        return
    scratch += row * stride
    part = tl.arange(0, PARTS)
    token = chunk * CHUNK + part[:, None] * PART + tl.arange(0, PART)[None, :]
    value = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
    # What is not a number is above all, to be found.
    value = tl.where(value != value, float("inf"), value)
    maxima = tl.max(value, 1)
    tl.store(maxima_of(scratch, P) + chunk * PARTS + part, maxima)
    peak = tl.max(maxima, 0)
    temperature = tl.full((), 1.0, tl.float32) if RAW else temperature_of(numbers, row)
    total = tl.sum(tl.sum(weigh(finite(peak) - value, temperature), 1), 0)
    if RAW:
        tl.store(scratch + RAW_PEAKS * P + chunk, peak)
        tl.store(scratch + RAW_SUMS * P + chunk, total)
    else:
        first = tl.min(tl.min(tl.where(value == peak, token, _LAST), 1), 0)
        tl.store(scratch + PEAKS * P + chunk, peak)
        tl.store(scratch + SUMS * P + chunk, total)
        tl.store(scratch + FIRSTS * P + chunk, first.to(tl.float32))


@triton.jit
def likeliest_kernel(
    logits, lengths, asked, scratch, logprobs, likeliest, vocabulary, chunks, stride,
    MOST: tl.constexpr, P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Store the likeliest tokens of a row with their log-probabilities; one program a row."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    wanted = tl.load(asked + row)
    if (tl.load(lengths + row) == 0) | (wanted < 1):
        return
    source, scratch = logits + row * vocabulary, scratch + row * stride
    peak, shares = whole_row(scratch, chunks, 1.0, RAW_PEAKS, P)
    whole = peak + tl.log(tl.sum(shares, 0).to(tl.float32))
    part = tl.arange(0, P * PARTS)
    maxima = tl.load(maxima_of(scratch, P) + part, mask=part < chunks * PARTS, other=float("-inf"))
    before, before_at = tl.full((), float("inf"), tl.float32), tl.full((), -1, tl.int32)
    for rank in range(tl.minimum(wanted, vocabulary)):
        best = tl.max(maxima, 0)
        where = tl.min(tl.where(maxima == best, part, _LAST), 0)
        at = where * PART + tl.arange(0, PART)
        value = tl.load(source + at, mask=at < vocabulary, other=float("-inf"))
        value = tl.where(value != value, float("inf"), value)
        # After the one before: less likely, or as likely and later.
        left = (at < vocabulary) & ((value < before) | ((value == before) & (at > before_at)))
        token = tl.min(tl.where(left & (value == best), at, _LAST), 0)
        rest = left & ((value < best) | ((value == best) & (at > token)))
        maxima = tl.where(part == where, tl.max(tl.where(rest, value, float("-inf")), 0), maxima)
        before, before_at = best, token
        tl.store(logprobs + row * (1 + MOST) + 1 + rank, best - whole)
        tl.store(likeliest + row * MOST + rank, tl.minimum(token, vocabulary - 1))
