"""Rotary positions (arXiv:2104.09864) for new tokens, and their keys and values into the paged cache."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent

# By one warp: few enough for a short batch to occupy the device, enough for a long one not to be bound by launches.
_HEADS = 8


def rope_store_reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
) -> None:
    """Do what :func:`rope_store` does, in float32, rounded once."""
    _, kv_heads, block_size, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    turned = qkv.view(len(qkv), -1, head_dim)[:, : heads + kv_heads]
    whole = turned.float()
    if norms is not None:
        scales = torch.cat([norms[0].float().expand(heads, -1), norms[1].float().expand(kv_heads, -1)])
        whole = F.rms_norm(whole, (head_dim,), None, eps) * scales
    first, second = whole.chunk(2, dim=-1)
    c, s = cos[positions].float()[:, None], sin[positions].float()[:, None]
    turned.copy_(torch.cat((first * c - second * s, second * c + first * s), dim=-1))
    whole = qkv.view(len(qkv), -1, head_dim)
    keys[slots // block_size, :, slots % block_size] = whole[:, heads : heads + kv_heads]
    values[slots // block_size, :, slots % block_size] = whole[:, heads + kv_heads :]


def rope_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate the queries in place, and rotated keys and values into the cache.

    Args:
        qkv: (tokens, (heads + 2 * kv_heads) * head_dim).
        cos, sin: float32 (positions, head_dim / 2).
        positions, slots: int64 (tokens); a slot is a block's number times its size plus the place in it.
        keys, values: (blocks, kv_heads, block_size, head_dim) of one layer.
        norms: (head_dim) each, weights of an RMS norm of each query and of each key before they are rotated.
    """
    _, kv_heads, block_size, head_dim = keys.shape
    all_heads = qkv.shape[1] // head_dim
    _rope_store[(len(qkv), triton.cdiv(all_heads, _HEADS))](
        qkv, cos, sin, positions, slots, keys, values, *(norms or (None, None)), eps,
        NORM=norms is not None, ALL=all_heads, KV=kv_heads, SIZE=block_size, HALF=head_dim // 2, HEADS=_HEADS,
        num_warps=1, **dependent(_rope_store),
    )  # fmt: skip


@triton.jit
def _rope_store(
    qkv, cos, sin, positions, slots, keys, values, query_norm, key_norm, eps,
    NORM: tl.constexpr, ALL: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    KEYS: tl.constexpr = ALL - 2 * KV
    VALUES: tl.constexpr = ALL - KV
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, HALF)[None, :]
    real = (head < ALL)[:, None]
    source = qkv + (token * ALL + head[:, None]) * 2 * HALF + lane
    first = tl.load(source, mask=real, other=0.0)
    second = tl.load(source + HALF, mask=real, other=0.0)
    position = tl.load(positions + token)
    c = tl.load(cos + position * HALF + lane)
    s = tl.load(sin + position * HALF + lane)
    a, b = first.to(tl.float32), second.to(tl.float32)
    if NORM:
        factor = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)
        is_query = (head < KEYS)[:, None]
        a *= factor[:, None] * _either(is_query, query_norm + lane, key_norm + lane)
        b *= factor[:, None] * _either(is_query, query_norm + HALF + lane, key_norm + HALF + lane)
    turned = (head < VALUES)[:, None]
    first = tl.where(turned, (a * c - b * s).to(first.dtype), first)
    second = tl.where(turned, (b * c + a * s).to(second.dtype), second)
    tl.store(source, first, mask=(head < KEYS)[:, None])
    tl.store(source + HALF, second, mask=(head < KEYS)[:, None])
    slot = tl.load(slots + token)
    kept = tl.where(head < VALUES, head - KEYS, head - VALUES)
    place = (((slot // SIZE) * KV + kept[:, None]) * SIZE + slot % SIZE) * 2 * HALF + lane
    is_key = ((head >= KEYS) & (head < VALUES))[:, None]
    tl.store(keys + place, first, mask=is_key)
    tl.store(keys + place + HALF, second, mask=is_key)
    is_value = ((head >= VALUES) & (head < ALL))[:, None]
    tl.store(values + place, first, mask=is_value)
    tl.store(values + place + HALF, second, mask=is_value)


@triton.jit
def _either(condition, first, second):
    return tl.where(condition, tl.load(first).to(tl.float32), tl.load(second).to(tl.float32))
