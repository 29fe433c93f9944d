"""The draw of a token from what a row's filters keep: where a random number falls in the running sum of weights."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.survey import (
    BASES,
    CHUNK,
    FIRSTS,
    FOUND,
    KEPT_SUMS,
    PEAKS,
    RAW_PEAKS,
    SLOTS,
    finite,
    interval_of,
    listed_of,
    temperature_of,
    weigh,
    whole_row,
)

_ALL = tl.constexpr(0x7F800000)
_LAST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _amount(bits, weight, middle, COUNTED: tl.constexpr):
    inside = bits <= middle
    if COUNTED:
        return tl.sum(tl.sum(inside.to(tl.int32), 1), 0).to(tl.float64)
    return tl.sum(tl.sum(tl.where(inside, weight, 0.0), 1), 0).to(tl.float64)


@triton.jit
def _reaching(bits, weight, low, high, goal, COUNTED: tl.constexpr):
    """Return the least distance, as bits, within which what is listed amounts to a goal: so many, or so much."""
    while low < high:
        middle = low + (high - low) // 2
        enough = _amount(bits, weight, middle, COUNTED) >= goal
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit
def _amount_of_row(source, size, peak, temperature, middle, COUNTED: tl.constexpr):
    amount = tl.full((), 0.0, tl.float64)
    for start in range(0, size, CHUNK):
        token = start + tl.arange(0, CHUNK)
        distance = peak - tl.load(source + token, mask=token < size, other=float("-inf"))
        inside = (distance.to(tl.int32, bitcast=True) <= middle) & (token < size)
        if COUNTED:
            amount += tl.sum(inside.to(tl.int32), 0)
        else:
            amount += tl.sum(tl.where(inside, weigh(distance, temperature), 0.0), 0).to(tl.float64)
    return amount


@triton.jit
def _reaching_in_row(source, size, peak, temperature, high, goal, COUNTED: tl.constexpr):
    """Do what :func:`_reaching` does where too many are left to be listed: ties, or a large top-k."""
    low = tl.full((), 0, tl.int32)
    while low < high:
        middle = low + (high - low) // 2
        enough = _amount_of_row(source, size, peak, temperature, middle, COUNTED) >= goal
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit
def _kept(source, token, size, peak, temperature, cut, least):
    """Return the weights of some tokens, 0 for what is not kept."""
    distance = peak - tl.load(source + token, mask=token < size, other=float("-inf"))
    weight = weigh(distance, temperature)
    return tl.where((distance.to(tl.int32, bitcast=True) <= cut) & (weight >= least), weight, 0.0)


@triton.jit
def draw_kernel(
    logits, ids, lengths, numbers, top_k, asked, penalised, edits, used, tokens, bias, until, counts, raw, uniforms,
    step, produced, logprobs, scratch, vocabulary, chunks, stride,
    STEPS: tl.constexpr, MOST: tl.constexpr, P: tl.constexpr, FILTERED: tl.constexpr, EDITED: tl.constexpr,
    LOGPROBS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose the token of a row, count it and store its log-probability; one program a row."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row)
    if length == 0:
        return
    source, scratch = logits + row * vocabulary, scratch + row * stride
    chunk = tl.arange(0, P)
    temperature = temperature_of(numbers, row)
    peak, sums = whole_row(scratch, chunks, temperature, PEAKS, P)
    peaks = tl.load(scratch + PEAKS * P + chunk, mask=chunk < chunks, other=float("-inf"))
    firsts = tl.load(scratch + FIRSTS * P + chunk, mask=(chunk < chunks) & (peaks == peak), other=2147483520.0)
    chosen = tl.min(firsts, 0).to(tl.int32)
    taken = tl.load(step + row)
    if finite(peak) != peak:
        chosen = tl.full((), -1, tl.int32)
        if EDITED:
            start = tl.load(edits + row)
            for at in range(start, start + tl.load(used + row), CHUNK):
                place = at + tl.arange(0, CHUNK)
                value = tl.load(raw + place, mask=place < start + tl.load(used + row), other=float("-inf"))
                if (peak < 0) & (tl.max(value, 0) > float("-inf")):
                    chosen = tl.full((), -2, tl.int32)
    elif tl.load(numbers + row * 6) > 0:
        cut, least = tl.full((), _ALL, tl.int32), tl.full((), 0.0, tl.float32)
        if FILTERED:
            wanted, top_p = tl.load(top_k + row), tl.load(numbers + row * 6 + 1)
            some = (wanted > 0) & (wanted < vocabulary)
            least = tl.load(numbers + row * 6 + 2).to(tl.float32)
            total = tl.sum(sums, 0)
            low = tl.maximum(tl.load(interval_of(scratch, 1, P)), 0.0).to(tl.int32, bitcast=True)
            cut = tl.load(interval_of(scratch, 1, P) + 1).to(tl.int32, bitcast=True)
            found = tl.load(scratch + FOUND * P + chunk, mask=chunk < chunks, other=0.0)
            if tl.max(found, 0) <= SLOTS:
                slot = tl.arange(0, SLOTS)
                at, there = chunk[:, None] * SLOTS + slot[None, :], slot[None, :] < found[:, None]
                distance = tl.load(listed_of(scratch, P) + at, mask=there, other=float("inf"))
                bits, weight = distance.to(tl.int32, bitcast=True), weigh(distance, temperature)
                if some:
                    cut = _reaching(bits, weight, low, cut, wanted, True)
                    total = _amount(bits, weight, cut, False)
                if top_p < 1:
                    nearer = tl.load(scratch + BASES * P + chunk, mask=chunk < chunks, other=0.0)
                    goal = top_p * total - tl.sum(nearer.to(tl.float64), 0)
                    cut = _reaching(bits, weight, low, cut, goal, False)
                sums = tl.load(scratch + KEPT_SUMS * P + chunk, mask=chunk < chunks, other=0.0).to(tl.float64)
                sums += tl.sum(tl.where((bits <= cut) & (weight >= least), weight, 0.0), 1).to(tl.float64)
            else:
                cut = tl.full((), _ALL, tl.int32)
                if some:
                    cut = _reaching_in_row(source, vocabulary, peak, temperature, cut, wanted, True)
                    total = _amount_of_row(source, vocabulary, peak, temperature, cut, False)
                if top_p < 1:
                    cut = _reaching_in_row(source, vocabulary, peak, temperature, cut, top_p * total, False)
                for index in range(chunks):
                    token = index * CHUNK + tl.arange(0, CHUNK)
                    weight = _kept(source, token, vocabulary, peak, temperature, cut, least)
                    sums = tl.where(chunk == index, tl.sum(weight, 0).to(tl.float64), sums)
        point = tl.load(uniforms + row * STEPS + taken) * tl.sum(sums, 0)
        ends = tl.cumsum(sums, 0)
        # The first whose running sum exceeds the point, which none of weight 0 is; the last, where rounding fell short.
        last = tl.max(tl.where(sums > 0, chunk, 0), 0)
        mine = tl.minimum(tl.min(tl.where((ends > point) & (sums > 0), chunk, _LAST), 0), last)
        point -= tl.max(tl.where(chunk < mine, ends, 0.0), 0)
        token = mine * CHUNK + tl.arange(0, CHUNK)
        weight = _kept(source, token, vocabulary, peak, temperature, cut, least)
        inner = tl.cumsum(weight.to(tl.float64), 0)
        last = tl.max(tl.where(weight > 0, token, 0), 0)
        chosen = tl.minimum(tl.min(tl.where((inner > point) & (weight > 0), token, _LAST), 0), last)
    if chosen >= 0:
        begin = tl.load(edits + row)
        end = begin + tl.load(used + row)
        value = tl.load(source + chosen)
        place = end
        if EDITED:
            for start in range(begin, end, CHUNK):
                at = start + tl.arange(0, CHUNK)
                edit = tl.load(tokens + at, mask=at < end, other=-1) == chosen
                place = tl.minimum(place, tl.min(tl.where(edit, at, _LAST), 0))
            if place < end:
                value = tl.load(raw + place)
            if tl.load(penalised + row) != 0:
                count = tl.full((), 0, tl.int32)
                if place < end:
                    count = tl.load(counts + place)
                elif place < tl.load(edits + row + 1):
                    tl.store(tokens + place, chosen)
                    tl.store(bias + place, 0.0)
                    tl.store(until + place, 0)
                    tl.store(used + row, place + 1 - begin)
                if place < tl.load(edits + row + 1):
                    tl.store(counts + place, (count | 1) + 2)
        if LOGPROBS and tl.load(asked + row) >= 0:
            highest, shares = whole_row(scratch, chunks, 1.0, RAW_PEAKS, P)
            whole = highest + tl.log(tl.sum(shares, 0).to(tl.float32))
            tl.store(logprobs + row * (1 + MOST), value - whole)
    tl.store(ids + row, chosen.to(tl.int64))
    tl.store(lengths + row, length + 1)
    tl.store(step + row, taken + 1)
    tl.store(produced + row, tl.load(produced + row) + 1)
