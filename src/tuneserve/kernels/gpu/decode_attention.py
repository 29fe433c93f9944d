"""Attention of one new token per sequence over the paged cache, its rotation and its store included.

Flash decoding (arXiv:2311.01282): a sequence's cache is divided among several programs, and the last to finish adds up
what each has found. Query heads that share keys are computed together, so that keys are read once.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.rope_store import rope_store_reference

# Positions at a time, warps, and stages of the pipeline, as measured.
_TILE, _WARPS, _STAGES = 32, 1, 2
# Heads times programs whose findings are added up at a time.
_GATHERED = 32


@dataclass(frozen=True)
class DecodeScratch:
    """What the programs of one sequence tell each other; ``arrived`` is zero between two launches."""

    sums: torch.Tensor
    states: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def of(
        cls, sequences: int, heads: int, kv_heads: int, head_dim: int, splits: int, device: torch.device
    ) -> "DecodeScratch":
        """Return scratch for ``splits`` programs per sequence and key head."""
        return cls(
            torch.empty(sequences, heads, splits, head_dim, device=device),
            torch.empty(sequences, heads, splits, 2, device=device),
            torch.zeros(sequences, kv_heads, dtype=torch.int32, device=device),
        )

    @property
    def splits(self) -> int:
        """How many programs share a sequence."""
        return self.sums.shape[2]


def decode_attention_reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    lengths: torch.Tensor,
    tables: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """Return what :func:`decode_attention` does, in float32, rounded once; sequences of no length get zeros."""
    _, kv_heads, block_size, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    result = torch.zeros(len(qkv), heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    for index, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        table, last = tables[index].long(), length - 1
        row = qkv[index : index + 1].clone()
        slot = table[last // block_size] * block_size + last % block_size
        place = torch.tensor([last], device=qkv.device)
        rope_store_reference(row, cos, sin, place, slot[None], keys, values, norms, eps)
        first = max(0, length - window) if window else 0
        at = torch.arange(first, length, device=qkv.device)
        blocks, within = table[at // block_size], at % block_size
        key, value = (cache[blocks, :, within].float().transpose(0, 1) for cache in (keys, values))
        query = row.view(-1, head_dim)[:heads].float().view(kv_heads, -1, head_dim)
        scores = query @ key.transpose(1, 2) * (scale or head_dim**-0.5)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        result[index] = (F.softmax(scores, -1) @ value).reshape(-1).to(qkv.dtype)
    return result


def decode_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    lengths: torch.Tensor,
    tables: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scratch: DecodeScratch,
    out: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """Rotate the newest token of each sequence, store its key and value, and attend to all the sequence.

    Args:
        qkv: (sequences, (heads + 2 * kv_heads) * head_dim), not yet rotated.
        cos, sin: float32 (positions, head_dim / 2).
        lengths: int32 (sequences), the new token counted; 0 leaves a row out.
        tables: int32 (sequences, blocks), where each sequence's blocks lie.
        keys, values: (blocks, kv_heads, block_size, head_dim) of one layer.
        scratch: at least as many sequences.
        out: (sequences, heads * head_dim).
        scale: of the scores; 1 over the root of ``head_dim`` unless given.
        window: how many of the latest tokens are seen, the new one counted; None means all.
        softcap: bounds the scores by a hyperbolic tangent (arXiv:2408.00118).
        norms: (head_dim) each, weights of an RMS norm of each query and of the key before they are rotated.
    """
    _, kv_heads, block_size, head_dim = keys.shape
    group = qkv.shape[1] // head_dim // kv_heads - 2
    _decode[(len(qkv), kv_heads, scratch.splits)](
        qkv, cos, sin, lengths, tables, tables.stride(0), keys, values,
        scratch.sums, scratch.states, scratch.arrived, out,
        (scale or head_dim**-0.5) * (1.0 if softcap else math.log2(math.e)), window or 0, softcap or 0.0,
        *(norms or (None, None)), eps, NORM=norms is not None, KV=kv_heads, GROUP=group,
        PADDED=max(16, power_of_two(group)), SIZE=block_size, HALF=head_dim // 2,
        MEMBERS=power_of_two(group), AT_ONCE=max(1, _GATHERED // power_of_two(group)),
        SPLITS=scratch.splits, TILE=_TILE, WINDOW=bool(window), SOFTCAP=bool(softcap),
        num_warps=_WARPS, num_stages=_STAGES, **dependent(_decode),
    )  # fmt: skip
    return out


@triton.jit
def _attend(
    query_first, query_second, key_first, key_second, value, seen, highest, weight, total, scale, softcap,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys and values to a running softmax."""
    score = tl.dot(query_first, tl.trans(key_first))
    score = tl.dot(query_second, tl.trans(key_second), score) * scale
    if SOFTCAP:
        score = _capped(score, softcap)
    score = tl.where(seen[None, :], score, float("-inf"))
    peak = tl.maximum(highest, tl.max(score, 1))
    share = tl.exp2(score - peak[:, None])
    faded = tl.exp2(highest - peak)
    weight = weight * faded + tl.sum(share, 1)
    total = total * faded[:, None] + tl.dot(share.to(value.dtype), value)
    return peak, weight, total


@triton.jit
def _capped(score, softcap):
    """Return capped scores for base 2."""
    LOG2E: tl.constexpr = 1.4426950408889634
    return (2.0 / (1.0 + tl.exp(-2.0 * score / softcap)) - 1.0) * softcap * LOG2E


@triton.jit
def _decode(
    qkv, cos, sin, lengths, tables, table_stride, keys, values, sums, states, arrived, out, scale, window, softcap,
    query_norm, key_norm, eps,
    NORM: tl.constexpr, KV: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr,
    HALF: tl.constexpr, MEMBERS: tl.constexpr, AT_ONCE: tl.constexpr,
    SPLITS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    HEADS: tl.constexpr = KV * GROUP
    WIDTH: tl.constexpr = (HEADS + 2 * KV) * 2 * HALF
    sequence, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    last = length - 1
    begin = 0
    if WINDOW:
        begin = tl.maximum(0, length - window) // TILE * TILE
    span = tl.maximum(tl.cdiv(tl.cdiv(length - begin, SPLITS), TILE) * TILE, TILE)
    start = begin + split * span
    end = tl.minimum(start + span, length)
    old = tl.minimum(end, last)
    active = tl.cdiv(length - begin, span)
    if split >= active:
        return

    # What earlier steps have stored does not depend on the kernel before this one.
    lane = tl.arange(0, HALF)
    both = tl.arange(0, 2 * HALF)
    table = tables + sequence * table_stride
    at = start + tl.arange(0, TILE)
    block = tl.load(table + at // SIZE, mask=at < old, other=0).to(tl.int64)
    source = ((block * KV + kv_head) * SIZE + at % SIZE) * 2 * HALF
    key_first = tl.load(keys + source[:, None] + lane[None, :], mask=(at < old)[:, None], other=0.0)
    key_second = tl.load(keys + source[:, None] + HALF + lane[None, :], mask=(at < old)[:, None], other=0.0)
    value = tl.load(values + source[:, None] + both[None, :], mask=(at < old)[:, None], other=0.0)
    c = tl.load(cos + last * HALF + lane)
    s = tl.load(sin + last * HALF + lane)
    if PDL:
        gdc_wait()

    member = tl.arange(0, PADDED)
    row = qkv + sequence * WIDTH
    place = row + (kv_head * GROUP + member)[:, None] * 2 * HALF + lane[None, :]
    real = (member < GROUP)[:, None]
    a = tl.load(place, mask=real, other=0.0).to(tl.float32)
    b = tl.load(place + HALF, mask=real, other=0.0).to(tl.float32)
    if NORM:
        factor = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)
        a *= factor[:, None] * tl.load(query_norm + lane).to(tl.float32)[None, :]
        b *= factor[:, None] * tl.load(query_norm + HALF + lane).to(tl.float32)[None, :]
    query_first = (a * c[None, :] - b * s[None, :]).to(qkv.dtype.element_ty)
    query_second = (b * c[None, :] + a * s[None, :]).to(qkv.dtype.element_ty)

    highest = tl.full((PADDED,), float("-inf"), tl.float32)
    weight = tl.zeros((PADDED,), tl.float32)
    total = tl.zeros((PADDED, 2 * HALF), tl.float32)
    if end == length:
        new_key = row + (HEADS + kv_head) * 2 * HALF
        first = tl.load(new_key + lane).to(tl.float32)
        second = tl.load(new_key + HALF + lane).to(tl.float32)
        if NORM:
            shrink = 1.0 / tl.sqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + eps)
            first *= shrink * tl.load(key_norm + lane).to(tl.float32)
            second *= shrink * tl.load(key_norm + HALF + lane).to(tl.float32)
        new_first = (first * c - second * s).to(qkv.dtype.element_ty)
        new_second = (second * c + first * s).to(qkv.dtype.element_ty)
        added = tl.load(row + (HEADS + KV + kv_head) * 2 * HALF + both)
        target = ((tl.load(table + last // SIZE).to(tl.int64) * KV + kv_head) * SIZE + last % SIZE) * 2 * HALF
        tl.store(keys + target + lane, new_first)
        tl.store(keys + target + HALF + lane, new_second)
        tl.store(values + target + both, added)
        product = query_first.to(tl.float32) * new_first.to(tl.float32)[None, :]
        product += query_second.to(tl.float32) * new_second.to(tl.float32)[None, :]
        highest = tl.sum(product, 1) * scale
        if SOFTCAP:
            highest = _capped(highest, softcap)
        weight += 1.0
        total += added.to(tl.float32)[None, :]

    seen = at < old
    if WINDOW:
        seen = seen & (at >= length - window)
    highest, weight, total = _attend(
        query_first, query_second, key_first, key_second, value, seen, highest, weight, total, scale, softcap, SOFTCAP
    )
    for tile in range(start + TILE, old, TILE):
        at = tile + tl.arange(0, TILE)
        seen = at < old
        block = tl.load(table + at // SIZE, mask=seen, other=0).to(tl.int64)
        source = ((block * KV + kv_head) * SIZE + at % SIZE) * 2 * HALF
        key_first = tl.load(keys + source[:, None] + lane[None, :], mask=seen[:, None], other=0.0)
        key_second = tl.load(keys + source[:, None] + HALF + lane[None, :], mask=seen[:, None], other=0.0)
        value = tl.load(values + source[:, None] + both[None, :], mask=seen[:, None], other=0.0)
        highest, weight, total = _attend(
            query_first, query_second, key_first, key_second, value, seen, highest, weight, total, scale, softcap,
            SOFTCAP,
        )  # fmt: skip

    head = kv_head * GROUP + member
    result = out + (sequence * HEADS + head)[:, None] * 2 * HALF + both[None, :]
    if active == 1:
        tl.store(result, (total / weight[:, None]).to(out.dtype.element_ty), mask=real)
        return
    part = (sequence * HEADS + head) * SPLITS + split
    tl.store(sums + part[:, None] * 2 * HALF + both[None, :], total, mask=real)
    tl.store(states + part * 2, highest, mask=member < GROUP)
    tl.store(states + part * 2 + 1, weight, mask=member < GROUP)
    tl.debug_barrier()
    before = tl.atomic_add(arrived + sequence * KV + kv_head, 1, sem="acq_rel")
    if before + 1 < active:
        return
    _gather(
        sums, states, out, sequence * HEADS + kv_head * GROUP, active,
        GROUP=GROUP, MEMBERS=MEMBERS, WIDTH=2 * HALF, SPLITS=SPLITS, AT_ONCE=AT_ONCE,
    )  # fmt: skip
    tl.store(arrived + sequence * KV + kv_head, 0)


@triton.jit
def _gather(
    sums, states, out, first, active,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Add up what the programs of a sequence have found for the heads from ``first`` on, several programs at a time."""
    member = tl.arange(0, MEMBERS)
    real = member < GROUP
    head = first + member
    lane = tl.arange(0, WIDTH)
    highest = tl.full((MEMBERS,), float("-inf"), tl.float32)
    weight = tl.zeros((MEMBERS,), tl.float32)
    total = tl.zeros((MEMBERS, WIDTH), tl.float32)
    for start in range(0, active, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        there = real[:, None] & (split < active)[None, :]
        part = head[:, None] * SPLITS + split[None, :]
        theirs = tl.load(states + part * 2, mask=there, other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(states + part * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
        pieces = tl.load(
            sums + part[:, :, None] * WIDTH + lane[None, None, :], mask=there[:, :, None], other=0.0,
            cache_modifier=".cg",
        )  # fmt: skip
        peak = tl.maximum(highest, tl.max(theirs, 1))
        # What has seen nothing must not become NaN.
        base = tl.where(peak == float("-inf"), 0.0, peak)
        share, faded = tl.exp2(theirs - base[:, None]), tl.exp2(highest - base)
        weight = weight * faded + tl.sum(share * weights, 1)
        total = total * faded[:, None] + tl.sum(share[:, :, None] * pieces, 1)
        highest = peak
    weight = tl.where(real, weight, 1.0)
    result = out + head[:, None] * WIDTH + lane[None, :]
    tl.store(result, (total / weight[:, None]).to(out.dtype.element_ty), mask=real[:, None])
