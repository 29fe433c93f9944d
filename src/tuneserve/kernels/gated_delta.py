"""The gated delta rule (arXiv:2412.06464), token by token and in chunks (arXiv:2406.06484)."""

from typing import NamedTuple

import torch

_CHUNK = 64
_EPS = 1e-6


class _Tokens(NamedTuple):
    """Of each head: (sequences, heads, tokens, ...)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    decay: torch.Tensor
    rate: torch.Tensor


def gated_delta(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    rate: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """Let each token decay the state, write its value at its key, and read at its query; all in float32.

    Each value head has a state S of (key_dim, value_dim), for which S <- exp(decay) S, then
    S <- S + k (rate (v - S^T k))^T, and the output is S^T q. Queries and keys are first brought to unit length, and
    queries divided by the root of it.

    Args:
        query, key: (sequences, tokens, key_heads, key_dim); each serves as many of the value heads that follow each
            other as there are for one.
        value: (sequences, tokens, value_heads, value_dim).
        decay: logarithms, not positive, float32 (sequences, tokens, value_heads).
        rate: from 0 to 1, (sequences, tokens, value_heads).
        state: float32 (sequences, value_heads, key_dim, value_dim), contiguous; it becomes that after the last token.
            New memory for it would cost the CPU far more time than the arithmetic.

    Returns:
        float32 (sequences, tokens, value_heads, value_dim).
    """
    group = value.shape[2] // key.shape[2]
    query, key = (_unit(x.float()).repeat_interleave(group, dim=2).transpose(1, 2) for x in (query, key))
    value, decay, rate = value.float().transpose(1, 2), decay.transpose(1, 2), rate.float().transpose(1, 2)
    query = query * query.shape[-1] ** -0.5
    tokens = _Tokens(query, key, value, decay, rate)
    if value.shape[2] == 1:
        return _one(tokens, state).transpose(1, 2)
    # One after the other, so that what a chunk needs stays in the processor's cache.
    outs = [
        _chunk(_Tokens(*(x[:, :, begin : begin + _CHUNK] for x in tokens)), state)
        for begin in range(0, value.shape[2], _CHUNK)
    ]
    return torch.cat(outs, dim=2).transpose(1, 2)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)


def _one(token: _Tokens, state: torch.Tensor) -> torch.Tensor:
    """Take a single token."""
    query, key, value, decay, rate = token
    state *= decay.exp()[..., None]
    written = (value - key @ state) * rate[..., None]
    state.addcmul_(key.transpose(-1, -2), written)
    return query @ state


def _chunk(tokens: _Tokens, state: torch.Tensor) -> torch.Tensor:
    """Take several at once.

    What each token writes depends on what those before it in the chunk wrote: a triangular system of equations.
    """
    query, key, value, decay, rate = tokens
    decay, rate = decay.cumsum(-1), rate[..., None]
    last, risen = decay[..., -1:], decay.exp()[..., None]
    between = (decay[..., :, None] - decay[..., None, :]).tril().exp_().tril_()
    system = ((key * rate) @ key.transpose(-1, -2)).mul_(between).tril_(-1)
    wanted = value * rate - (key * (rate * risen)) @ state
    written: torch.Tensor = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    seen = (query @ key.transpose(-1, -2)).mul_(between)
    out = (seen @ written).add_((query * risen) @ state)
    state.mul_(last.exp()[..., None])
    state.add_((key * (last - decay).exp()[..., None]).transpose(-1, -2) @ written)
    return out
