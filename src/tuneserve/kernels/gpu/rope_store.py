"""Rotary positions (arXiv:2104.09864) for new tokens, and their keys and values into the paged cache."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.lanes import angles, lanes_of, paired, pairs_rotated
from tuneserve.kernels.gpu.launch import dependent

# By one warp: few enough for a short batch to occupy the device, enough for a long one not to be bound by launches.
_HEADS = 8


def rope_store_reference(
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
    query_scales: torch.Tensor | None = None,
) -> None:
    """Do what :func:`rope_store` does, in float32, rounded once."""
    _, kv_heads, block_size, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    turned = qkv.view(len(qkv), -1, head_dim)[:, : heads + kv_heads]
    whole = turned.float()
    if norms is not None:
        scales = torch.cat([norms[0].float().expand(heads, -1), norms[1].float().expand(kv_heads, -1)])
        whole = F.rms_norm(whole, (head_dim,), None, eps) * scales
    if cos is not None and sin is not None:
        pairs = cos.shape[1]
        first, second, rest = whole.split([pairs, pairs, head_dim - 2 * pairs], dim=-1)
        c, s = cos[positions].float()[:, None], sin[positions].float()[:, None]
        whole = torch.cat((first * c - second * s, second * c + first * s, rest), dim=-1)
    if query_scales is not None:
        whole = torch.cat((whole[:, :heads] * query_scales[positions, None, None], whole[:, heads:]), dim=1)
    turned.copy_(whole)
    whole = qkv.view(len(qkv), -1, head_dim)
    keys[slots // block_size, :, slots % block_size] = whole[:, heads : heads + kv_heads]
    values[slots // block_size, :, slots % block_size] = whole[:, heads + kv_heads :]


def rope_store(
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
    query_scales: torch.Tensor | None = None,
) -> None:
    """Rotate the queries in place, and rotated keys and values into the cache.

    Args:
        qkv: (tokens, (heads + 2 * kv_heads) * head_dim).
        cos, sin: float32 (positions, pairs), of the pairs of each head that are rotated, its first elements; None is
            no rotation.
        positions, slots: int64 (tokens); a slot is a block's number times its size plus the place in it.
        keys, values: (blocks, kv_heads, block_size, head_dim) of one layer.
        norms: (head_dim) each, weights of an RMS norm of each query and of each key before they are rotated.
        query_scales: float32 (positions), multiply rotated queries.
    """
    _, kv_heads, block_size, head_dim = keys.shape
    all_heads = qkv.shape[1] // head_dim
    _rope_store[(len(qkv), triton.cdiv(all_heads, _HEADS))](
        qkv, cos, sin, positions, slots, keys, values, *(norms or (None, None)), eps, query_scales,
        NORM=norms is not None, ALL=all_heads, KV=kv_heads, SIZE=block_size, HALF=head_dim // 2, HEADS=_HEADS,
        LANES=lanes_of(head_dim), ROTATED=pairs_rotated(cos), SCALES=query_scales is not None,
        num_warps=1, **dependent(_rope_store),
    )  # fmt: skip


@triton.jit
def _rope_store(
    qkv, cos, sin, positions, slots, keys, values, query_norm, key_norm, eps, query_scales,
    NORM: tl.constexpr, ALL: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, LANES: tl.constexpr, ROTATED: tl.constexpr, SCALES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    KEYS: tl.constexpr = ALL - 2 * KV
    VALUES: tl.constexpr = ALL - KV
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, LANES)
    used = lane < HALF
    first, second = paired(lane, HALF, ROTATED)
    source = qkv + (token * ALL + head[:, None]) * 2 * HALF
    real = (head < ALL)[:, None] & used[None, :]
    x = tl.load(source + first[None, :], mask=real, other=0.0)
    y = tl.load(source + second[None, :], mask=real, other=0.0)
    position = tl.load(positions + token)
    c, s = angles(cos, sin, position, lane, ROTATED)
    a, b = x.to(tl.float32), y.to(tl.float32)
    is_query = (head < KEYS)[:, None]
    if NORM:
        factor = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)
        a *= factor[:, None] * _either(is_query, query_norm + first, key_norm + first, used)
        b *= factor[:, None] * _either(is_query, query_norm + second, key_norm + second, used)
    if SCALES:
        growth = tl.where(is_query, tl.load(query_scales + position), 1.0)
        a *= growth
        b *= growth
    turned = (head < VALUES)[:, None]
    x = tl.where(turned, (a * c[None, :] - b * s[None, :]).to(x.dtype), x)
    y = tl.where(turned, (b * c[None, :] + a * s[None, :]).to(y.dtype), y)
    mine = (head < KEYS)[:, None] & used[None, :]
    tl.store(source + first[None, :], x, mask=mine)
    tl.store(source + second[None, :], y, mask=mine)
    slot = tl.load(slots + token)
    kept = tl.where(head < VALUES, head - KEYS, head - VALUES)
    place = (((slot // SIZE) * KV + kept[:, None]) * SIZE + slot % SIZE) * 2 * HALF
    is_key = ((head >= KEYS) & (head < VALUES))[:, None] & used[None, :]
    tl.store(keys + place + first[None, :], x, mask=is_key)
    tl.store(keys + place + second[None, :], y, mask=is_key)
    is_value = ((head >= VALUES) & (head < ALL))[:, None] & used[None, :]
    tl.store(values + place + first[None, :], x, mask=is_value)
    tl.store(values + place + second[None, :], y, mask=is_value)


@triton.jit
def _either(condition, first, second, used):
    """Return the lanes of one of two rows for each head."""
    one = tl.load(first, mask=used, other=0.0).to(tl.float32)[None, :]
    other = tl.load(second, mask=used, other=0.0).to(tl.float32)[None, :]
    return tl.where(condition, one, other)
