"""The gated delta rule (arXiv:2412.06464), token by token and in chunks (arXiv:2406.06484)."""

import torch
import torch.nn.functional as F

_CHUNK = 64
_EPS = 1e-6


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
    if value.shape[2] == 1:
        out = _one(query, key, value, decay, rate, state)
    else:
        out = _many(query, key, value, decay, rate, state)
    return out.transpose(1, 2)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    rate: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """Take one token: all are (sequences, heads, 1, ...)."""
    state *= decay.exp()[..., None]
    written = (value - key @ state) * rate[..., None]
    state.addcmul_(key.transpose(-1, -2), written)
    return query @ state


def _many(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    rate: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """Take (sequences, heads, tokens, ...) chunk by chunk.

    What the tokens of a chunk write depends on what those before them wrote, which is a triangular system; solved, it
    gives what they would write to an empty state, and which part of the state it came upon each of them replaces.
    """
    tokens = value.shape[2]
    size = min(_CHUNK, tokens)
    missing = -tokens % size
    # Neither a decay nor a rate: what is added here leaves the state alone.
    query, key, value = (F.pad(x, (0, 0, 0, missing)) for x in (query, key, value))
    decay, rate = (F.pad(x, (0, missing)) for x in (decay, rate))
    query, key, value = (x.reshape(*x.shape[:2], -1, size, x.shape[-1]) for x in (query, key, value))
    decay, rate = (x.reshape(*x.shape[:2], -1, size) for x in (decay.float(), rate))
    decay, rate = decay.cumsum(-1), rate[..., None]

    between = (decay[..., :, None] - decay[..., None, :]).tril().exp().tril()
    system = (key * rate) @ key.transpose(-1, -2) * between
    sides = torch.cat((value * rate, key * rate * decay.exp()[..., None]), dim=-1)
    solved = torch.linalg.solve_triangular(system.tril(-1), sides, upper=False, unitriangular=True)
    written, replaced = torch.split(solved, [value.shape[-1], key.shape[-1]], dim=-1)
    seen = query @ key.transpose(-1, -2) * between
    query = query * decay.exp()[..., None]
    last = decay[..., -1:]
    key = (key * (last - decay).exp()[..., None]).transpose(-1, -2)
    kept = last.exp()[..., None]

    outs = []
    for chunk in range(value.shape[2]):
        new = written[:, :, chunk] - replaced[:, :, chunk] @ state
        outs.append(query[:, :, chunk] @ state + seen[:, :, chunk] @ new)
        state.mul_(kept[:, :, chunk]).add_(key[:, :, chunk] @ new)
    return torch.cat(outs, dim=2)[:, :, :tokens]
