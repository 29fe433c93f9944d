"""A softmax over keys that come a tile at a time (arXiv:1805.02867), its exponents of base 2."""

import triton
import triton.language as tl


@triton.jit
def add_tile(
    query_first, query_second, key_first, key_second, value, seen, highest, weight, total, scale, softcap,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys and values to a running softmax."""
    score = tl.dot(query_first, tl.trans(key_first))
    score = tl.dot(query_second, tl.trans(key_second), score) * scale
    if SOFTCAP:
        score = capped(score, softcap)
    score = tl.where(seen[None, :], score, float("-inf"))
    peak = tl.maximum(highest, tl.max(score, 1))
    share = tl.exp2(score - peak[:, None])
    faded = tl.exp2(highest - peak)
    weight = weight * faded + tl.sum(share, 1)
    total = total * faded[:, None] + tl.dot(share.to(value.dtype), value)
    return peak, weight, total


@triton.jit
def capped(score, softcap):
    """Return scores within plus and minus ``softcap`` by a hyperbolic tangent, for base 2."""
    LOG2E: tl.constexpr = 1.4426950408889634
    return (2.0 / (1.0 + tl.exp(-2.0 * score / softcap)) - 1.0) * softcap * LOG2E


@triton.jit
def sink_scores(sinks, head, real):
    """Return the score, for base 2, that takes its part of each head's probability and gives nothing."""
    LOG2E: tl.constexpr = 1.4426950408889634
    return tl.load(sinks + head, mask=real, other=float("-inf")).to(tl.float32) * LOG2E


@triton.jit
def gather_splits(
    sums, states, out, first, active,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, SPLITS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Add up what the programs of a sequence have found for the heads from ``first`` on, several programs at a time."""
    member = tl.arange(0, MEMBERS)
    real = member < GROUP
    head = first + member
    lane = tl.arange(0, LANES)
    highest = tl.full((MEMBERS,), float("-inf"), tl.float32)
    weight = tl.zeros((MEMBERS,), tl.float32)
    total = tl.zeros((MEMBERS, LANES), tl.float32)
    for start in range(0, active, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        there = real[:, None] & (split < active)[None, :]
        part = head[:, None] * SPLITS + split[None, :]
        theirs = tl.load(states + part * 2, mask=there, other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(states + part * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
        inside = there[:, :, None] & (lane < WIDTH)[None, None, :]
        pieces = tl.load(
            sums + part[:, :, None] * WIDTH + lane[None, None, :], mask=inside, other=0.0, cache_modifier=".cg"
        )
        peak = tl.maximum(highest, tl.max(theirs, 1))
        # What has seen nothing must not become NaN.
        base = tl.where(peak == float("-inf"), 0.0, peak)
        share, faded = tl.exp2(theirs - base[:, None]), tl.exp2(highest - base)
        weight = weight * faded + tl.sum(share * weights, 1)
        total = total * faded[:, None] + tl.sum(share[:, :, None] * pieces, 1)
        highest = peak
    weight = tl.where(real, weight, 1.0)
    valid = real[:, None] & (lane < WIDTH)[None, :]
    result = out + head[:, None] * WIDTH + lane[None, :]
    tl.store(result, (total / weight[:, None]).to(out.dtype.element_ty), mask=valid)
