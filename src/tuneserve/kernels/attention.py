"""Scaled dot-product attention with grouped query heads."""

import torch
import torch.nn.functional as F


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from some rows of each sequence.

    Args:
        query: (sequences, rows, heads, head_dim).
        key, value: (sequences, kv_heads, length, head_dim).
        mask: (sequences or 1, rows, length), in the dtype of the query: 0 where a row may look, -inf where not.
        causal: row i may look at the first i + 1; ``mask`` must be None.
        scale: of the scores; None is 1 / sqrt(head_dim).
        softcap: scores are squashed to within plus and minus this (Gemma 2, arXiv:2408.00118).
        sinks: a score for each head, (heads), that takes its part of the probability and gives nothing (gpt-oss).

    Returns:
        (sequences, rows, heads * head_dim).
    """
    sequences, rows, _, head_dim = query.shape
    if softcap is None and sinks is None:
        one = rows == 1
        # For one row, the query heads of a group stand where rows would: each group reads its keys once.
        query = query.view(sequences, key.shape[1], -1, head_dim) if one else query.transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None],
            is_causal=causal and not one,
            scale=scale,
            enable_gqa=not one,
        )
        return (attended if one else attended.transpose(1, 2)).reshape(sequences, rows, -1)
    grouped = query.view(sequences, rows, key.shape[1], -1, head_dim).permute(0, 2, 3, 1, 4)
    scores = (grouped @ key[:, :, None].transpose(-1, -2)).float() * (head_dim**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        scores = scores + scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
    elif mask is not None:
        scores = scores + mask[:, None, None]
    if sinks is not None:
        sink = sinks.float().view(key.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value[:, :, None]).permute(0, 3, 1, 2, 4).reshape(sequences, rows, -1)
