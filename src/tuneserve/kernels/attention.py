"""Scaled dot-product attention over a key-value cache, with grouped query heads."""

import torch
import torch.nn.functional as F


def attend_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attend from one new token per sequence.

    Args:
        query: (sequences, heads, head_dim).
        key, value: (sequences, kv_heads, length, head_dim), the new token's included.
        mask: bool (sequences, 1, 1, length), true where a position may be seen; None if all may.

    Returns:
        (sequences, heads * head_dim).
    """
    sequences, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    # The query heads of a group stand where query positions would: each group reads its keys once.
    grouped = query.view(sequences, kv_heads, heads // kv_heads, head_dim)
    return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(sequences, -1)


def attend_many(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend causally from the last ``count`` positions of one sequence.

    Args:
        query: (count, heads, head_dim).
        key, value: (kv_heads, length, head_dim), ``length`` at least ``count``.

    Returns:
        (count, heads * head_dim).
    """
    count, length = query.shape[0], key.shape[1]
    mask = None
    if count < length:
        mask = torch.ones(count, length, dtype=torch.bool, device=query.device).tril_(length - count)
    attended = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return attended[0].transpose(0, 1).reshape(count, -1)
