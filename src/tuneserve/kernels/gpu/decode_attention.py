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

from tuneserve.kernels.gpu.lanes import angles, lanes_of, paired, pairs_rotated
from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.rope_store import rope_store_reference
from tuneserve.kernels.gpu.softmax import add_tile, capped, gather_splits, sink_scores

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
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
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
    query_scales: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
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
        rope_store_reference(row, cos, sin, place, slot[None], keys, values, norms, eps, query_scales)
        first = max(0, length - window) if window else 0
        at = torch.arange(first, length, device=qkv.device)
        blocks, within = table[at // block_size], at % block_size
        key, value = (cache[blocks, :, within].float().transpose(0, 1) for cache in (keys, values))
        query = row.view(-1, head_dim)[:heads].float().view(kv_heads, -1, head_dim)
        scores = query @ key.transpose(1, 2) * (scale or head_dim**-0.5)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks.float().view(kv_heads, -1, 1)], -1)
        shares = F.softmax(scores, -1)[..., : len(at)]
        result[index] = (shares @ value).reshape(-1).to(qkv.dtype)
    return result


def decode_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
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
    query_scales: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate the newest token of each sequence, store its key and value, and attend to all the sequence.

    Args:
        qkv: (sequences, (heads + 2 * kv_heads) * head_dim), not yet rotated.
        cos, sin: float32 (positions, pairs), of the pairs of each head that are rotated, its first elements; None is
            no rotation.
        lengths: int32 (sequences), the new token counted; 0 leaves a row out.
        tables: int32 (sequences, blocks), where each sequence's blocks lie.
        keys, values: (blocks, kv_heads, block_size, head_dim) of one layer.
        scratch: at least as many sequences.
        out: (sequences, heads * head_dim).
        scale: of the scores; 1 over the root of ``head_dim`` unless given.
        window: how many of the latest tokens are seen, the new one counted; None means all.
        softcap: bounds the scores by a hyperbolic tangent (arXiv:2408.00118).
        norms: (head_dim) each, weights of an RMS norm of each query and of the key before they are rotated.
        query_scales: float32 (positions), multiply rotated queries.
        sinks: (heads), scores that take their part of each head's probability and give nothing.
    """
    _, kv_heads, block_size, head_dim = keys.shape
    group = qkv.shape[1] // head_dim // kv_heads - 2
    tile, warps, stages = shape_of(head_dim)
    _decode[(len(qkv), kv_heads, scratch.splits)](
        qkv, cos, sin, lengths, tables, tables.stride(0), keys, values,
        scratch.sums, scratch.states, scratch.arrived, out,
        (scale or head_dim**-0.5) * (1.0 if softcap else math.log2(math.e)), window or 0, softcap or 0.0,
        *(norms or (None, None)), eps, query_scales, sinks, NORM=norms is not None, KV=kv_heads, GROUP=group,
        PADDED=max(16, power_of_two(group)), SIZE=block_size, HALF=head_dim // 2, LANES=lanes_of(head_dim),
        ROTATED=pairs_rotated(cos), MEMBERS=power_of_two(group), AT_ONCE=max(1, _GATHERED // power_of_two(group)),
        SPLITS=scratch.splits, TILE=tile, WINDOW=bool(window), SOFTCAP=bool(softcap),
        SCALES=query_scales is not None, SINKS=sinks is not None,
        num_warps=warps, num_stages=stages, **dependent(_decode),
    )  # fmt: skip
    return out


def shape_of(head_dim: int) -> tuple[int, int, int]:
    """Return positions at a time, warps, and stages of the pipeline, as measured."""
    return (32, 1, 2) if head_dim <= 128 else (32, 4, 2)


@triton.jit
def _decode(
    qkv, cos, sin, lengths, tables, table_stride, keys, values, sums, states, arrived, out, scale, window, softcap,
    query_norm, key_norm, eps, query_scales, sinks,
    NORM: tl.constexpr, KV: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr,
    HALF: tl.constexpr, LANES: tl.constexpr, ROTATED: tl.constexpr, MEMBERS: tl.constexpr, AT_ONCE: tl.constexpr,
    SPLITS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCALES: tl.constexpr,
    SINKS: tl.constexpr, PDL: tl.constexpr,
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
    lane = tl.arange(0, LANES)
    both = tl.arange(0, 2 * LANES)
    used, whole = lane < HALF, both < 2 * HALF
    first, second = paired(lane, HALF, ROTATED)
    table = tables + sequence * table_stride
    at = start + tl.arange(0, TILE)
    block = tl.load(table + at // SIZE, mask=at < old, other=0).to(tl.int64)
    source = ((block * KV + kv_head) * SIZE + at % SIZE) * 2 * HALF
    key_first = tl.load(keys + source[:, None] + first[None, :], mask=(at < old)[:, None] & used[None, :], other=0.0)
    key_second = tl.load(keys + source[:, None] + second[None, :], mask=(at < old)[:, None] & used[None, :], other=0.0)
    value = tl.load(values + source[:, None] + both[None, :], mask=(at < old)[:, None] & whole[None, :], other=0.0)
    c, s = angles(cos, sin, last, lane, ROTATED)
    if PDL:
        gdc_wait()

    member = tl.arange(0, PADDED)
    row = qkv + sequence * WIDTH
    place = row + (kv_head * GROUP + member)[:, None] * 2 * HALF
    real = (member < GROUP)[:, None] & used[None, :]
    a = tl.load(place + first[None, :], mask=real, other=0.0).to(tl.float32)
    b = tl.load(place + second[None, :], mask=real, other=0.0).to(tl.float32)
    if NORM:
        factor = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)
        a *= factor[:, None] * tl.load(query_norm + first, mask=used, other=0.0).to(tl.float32)[None, :]
        b *= factor[:, None] * tl.load(query_norm + second, mask=used, other=0.0).to(tl.float32)[None, :]
    if SCALES:
        growth = tl.load(query_scales + last)
        a *= growth
        b *= growth
    query_first = (a * c[None, :] - b * s[None, :]).to(qkv.dtype.element_ty)
    query_second = (b * c[None, :] + a * s[None, :]).to(qkv.dtype.element_ty)

    highest = tl.full((PADDED,), float("-inf"), tl.float32)
    weight = tl.zeros((PADDED,), tl.float32)
    total = tl.zeros((PADDED, 2 * LANES), tl.float32)
    if end == length:
        new_key = row + (HEADS + kv_head) * 2 * HALF
        x = tl.load(new_key + first, mask=used, other=0.0).to(tl.float32)
        y = tl.load(new_key + second, mask=used, other=0.0).to(tl.float32)
        if NORM:
            shrink = 1.0 / tl.sqrt((tl.sum(x * x, 0) + tl.sum(y * y, 0)) / (2 * HALF) + eps)
            x *= shrink * tl.load(key_norm + first, mask=used, other=0.0).to(tl.float32)
            y *= shrink * tl.load(key_norm + second, mask=used, other=0.0).to(tl.float32)
        new_first = (x * c - y * s).to(qkv.dtype.element_ty)
        new_second = (y * c + x * s).to(qkv.dtype.element_ty)
        added = tl.load(row + (HEADS + KV + kv_head) * 2 * HALF + both, mask=whole, other=0.0)
        target = ((tl.load(table + last // SIZE).to(tl.int64) * KV + kv_head) * SIZE + last % SIZE) * 2 * HALF
        tl.store(keys + target + first, new_first, mask=used)
        tl.store(keys + target + second, new_second, mask=used)
        tl.store(values + target + both, added, mask=whole)
        product = query_first.to(tl.float32) * new_first.to(tl.float32)[None, :]
        product += query_second.to(tl.float32) * new_second.to(tl.float32)[None, :]
        highest = tl.sum(product, 1) * scale
        if SOFTCAP:
            highest = capped(highest, softcap)
        weight += 1.0
        total += added.to(tl.float32)[None, :]
        if SINKS:
            sink = sink_scores(sinks, kv_head * GROUP + member, member < GROUP)
            peak = tl.maximum(highest, sink)
            share = tl.exp2(highest - peak)
            weight = share + tl.exp2(sink - peak)
            total *= share[:, None]
            highest = peak

    seen = at < old
    if WINDOW:
        seen = seen & (at >= length - window)
    highest, weight, total = add_tile(
        query_first, query_second, key_first, key_second, value, seen, highest, weight, total, scale, softcap, SOFTCAP
    )
    for tile in range(start + TILE, old, TILE):
        at = tile + tl.arange(0, TILE)
        seen = at < old
        block = tl.load(table + at // SIZE, mask=seen, other=0).to(tl.int64)
        source = ((block * KV + kv_head) * SIZE + at % SIZE) * 2 * HALF
        key_first = tl.load(keys + source[:, None] + first[None, :], mask=seen[:, None] & used[None, :], other=0.0)
        key_second = tl.load(keys + source[:, None] + second[None, :], mask=seen[:, None] & used[None, :], other=0.0)
        value = tl.load(values + source[:, None] + both[None, :], mask=seen[:, None] & whole[None, :], other=0.0)
        highest, weight, total = add_tile(
            query_first, query_second, key_first, key_second, value, seen, highest, weight, total, scale, softcap,
            SOFTCAP,
        )  # fmt: skip

    head = kv_head * GROUP + member
    result = out + (sequence * HEADS + head)[:, None] * 2 * HALF + both[None, :]
    real = (member < GROUP)[:, None] & whole[None, :]
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
    gather_splits(
        sums, states, out, sequence * HEADS + kv_head * GROUP, active,
        GROUP=GROUP, MEMBERS=MEMBERS, WIDTH=2 * HALF, LANES=2 * LANES, SPLITS=SPLITS, AT_ONCE=AT_ONCE,
    )  # fmt: skip
    tl.store(arrived + sequence * KV + kv_head, 0)
