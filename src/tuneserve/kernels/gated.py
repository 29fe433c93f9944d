"""The gate of a feed-forward layer (GLU variants, arXiv:2002.05202)."""

from typing import Literal

import torch
import torch.nn.functional as F


def gated(gate_up: torch.Tensor, activation: Literal["silu", "gelu_tanh"]) -> torch.Tensor:
    """Return activation(gate) * up, (tokens, inner), of both side by side, (tokens, 2 * inner)."""
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return activated * up


def gated_clamped(gate_up: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """Return gate * sigmoid(alpha * gate) * (up + 1), with both clamped to ``limit``; shapes as in :func:`gated`."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * alpha) * (up + 1)
