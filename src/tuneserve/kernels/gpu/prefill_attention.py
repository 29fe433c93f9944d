"""Causal attention of many new tokens per sequence over the paged cache (arXiv:2205.14135), lengths mixed."""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.lanes import lanes_of
from tuneserve.kernels.gpu.launch import dependent
from tuneserve.kernels.gpu.softmax import capped, sink_scores

QUERIES = 64


def prefill_attention_reference(
    qkv: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    tables: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what :func:`prefill_attention` does, in float32, rounded once."""
    _, kv_heads, block_size, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    result = torch.zeros(len(qkv), heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    bounds = starts.tolist()
    for index, length in enumerate(lengths.tolist()):
        rows = slice(bounds[index], bounds[index + 1])
        count = rows.stop - rows.start
        at = torch.arange(length, device=qkv.device)
        blocks = tables[index].long()[at // block_size]
        key, value = (cache[blocks, :, at % block_size].float().transpose(0, 1) for cache in (keys, values))
        query = qkv[rows].view(count, -1, head_dim)[:, :heads].float().transpose(0, 1)
        key, value = (part.repeat_interleave(heads // kv_heads, 0) for part in (key, value))
        scores = query @ key.transpose(1, 2) * (scale or head_dim**-0.5)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        place = torch.arange(length - count, length, device=qkv.device)[:, None]
        seen = at[None] <= place
        if window:
            seen &= at[None] > place - window
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks.float().view(-1, 1, 1).expand(-1, count, 1)], -1)
        shares = F.softmax(scores, -1)[..., :length]
        result[rows] = (shares @ value).transpose(0, 1).reshape(count, -1).to(qkv.dtype)
    return result


def query_tiles(counts: list[int]) -> list[tuple[int, int]]:
    """Return which sequence each program takes, and from which of its new tokens on, the longest first."""
    tiles = [(index, first) for index, count in enumerate(counts) for first in range(0, count, QUERIES)]
    return sorted(tiles, key=lambda tile: -tile[1])


def prefill_attention(
    qkv: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    tables: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tiles: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from the last tokens of each sequence, whose keys and values are in the cache already.

    Args:
        qkv: (tokens, (heads + 2 * kv_heads) * head_dim), queries rotated.
        starts: int32 (sequences + 1), where each sequence's tokens begin in ``qkv``.
        lengths: int32 (sequences), tokens of each in the cache, the new ones counted.
        tables: int32 (sequences, blocks).
        keys, values: (blocks, kv_heads, block_size, head_dim) of one layer.
        tiles: int32 (programs, 2), from :func:`query_tiles`; those of sequence -1 are left out.
        out: (tokens, heads * head_dim).
        scale, window, softcap, sinks: as in decode attention.
    """
    _, kv_heads, block_size, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    lanes = 2 * lanes_of(head_dim)
    tile, warps, stages = shape_of(lanes * qkv.itemsize)
    _prefill[(len(tiles), heads)](
        qkv, starts, lengths, tables, tables.stride(0), keys, values, tiles, out,
        (scale or head_dim**-0.5) * (1.0 if softcap else math.log2(math.e)), window or 0, softcap or 0.0,
        sinks, KV=kv_heads, HEADS=heads, SIZE=block_size, DIM=head_dim, LANES=lanes, QUERIES=QUERIES, TILE=tile,
        WINDOW=bool(window), SOFTCAP=bool(softcap), SINKS=sinks is not None, num_warps=warps, num_stages=stages,
        **dependent(_prefill),
    )  # fmt: skip
    return out


def shape_of(head_bytes: int) -> tuple[int, int, int]:
    """Return keys at a time, warps, and stages of the pipeline, all of which have to be in shared memory."""
    return (64, 4, 3) if head_bytes <= 256 else (64, 8, 2) if head_bytes <= 512 else (32, 8, 1)


@triton.jit
def _prefill(
    qkv, starts, lengths, tables, table_stride, keys, values, tiles, out, scale, window, softcap, sinks,
    KV: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr, LANES: tl.constexpr,
    QUERIES: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sequence = tl.load(tiles + tl.program_id(0) * 2).to(tl.int64)
    if sequence < 0:
        return
    first = tl.load(tiles + tl.program_id(0) * 2 + 1)
    head = tl.program_id(1)
    kv_head = head // (HEADS // KV)
    row = tl.load(starts + sequence)
    count = tl.load(starts + sequence + 1) - row
    length = tl.load(lengths + sequence)
    member = first + tl.arange(0, QUERIES)
    real = member < count
    place = length - count + member
    lane = tl.arange(0, LANES)
    used = lane < DIM
    token = (row + member).to(tl.int64)
    own = real[:, None] & used[None, :]
    query = tl.load(qkv + (token[:, None] * (HEADS + 2 * KV) + head) * DIM + lane[None, :], mask=own, other=0.0)
    end = tl.minimum(length - count + first + QUERIES, length)
    begin = 0
    if WINDOW:
        begin = tl.maximum(0, length - count + first - window + 1) // TILE * TILE
    table = tables + sequence * table_stride
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, LANES), tl.float32)
    if SINKS:
        highest = tl.full((QUERIES,), 0.0, tl.float32) + sink_scores(sinks, head, head < HEADS)
        weight += 1.0
    for tile in range(begin, end, TILE):
        at = tile + tl.arange(0, TILE)
        inside = at < end
        block = tl.load(table + at // SIZE, mask=inside, other=0).to(tl.int64)
        source = ((block * KV + kv_head) * SIZE + at % SIZE) * DIM
        key = tl.load(keys + source[:, None] + lane[None, :], mask=inside[:, None] & used[None, :], other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        if SOFTCAP:
            score = capped(score, softcap)
        seen = (at[None, :] <= place[:, None]) & inside[None, :]
        if WINDOW:
            seen = seen & (at[None, :] > place[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
        peak = tl.maximum(highest, tl.max(score, 1))
        # A row that has seen nothing yet must not become NaN.
        base = tl.where(peak == float("-inf"), 0.0, peak)
        share = tl.exp2(score - base[:, None])
        faded = tl.exp2(highest - base)
        weight = weight * faded + tl.sum(share, 1)
        value = tl.load(values + source[:, None] + lane[None, :], mask=inside[:, None] & used[None, :], other=0.0)
        total = total * faded[:, None] + tl.dot(share.to(value.dtype), value)
        highest = peak
    weight = tl.where(weight == 0.0, 1.0, weight)
    target = out + (token[:, None] * HEADS + head) * DIM + lane[None, :]
    tl.store(target, (total / weight[:, None]).to(out.dtype.element_ty), mask=own)
