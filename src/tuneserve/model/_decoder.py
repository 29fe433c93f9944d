"""The decoder: tokens of any number of sequences in one flat batch, attention left to whoever holds the cache."""

from typing import Protocol

import torch
import torch.nn.functional as F

from tuneserve.kernels.rms_norm import rms_norm
from tuneserve.kernels.rotary import rotate
from tuneserve.model._rope import rope_tables
from tuneserve.model._weights import Weights
from tuneserve.spec import ModelSpec


class Attention(Protocol):
    """Stores the new keys and values of a layer and attends to all of each token's own sequence."""

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return (tokens, heads * head_dim).

        Args:
            layer: its number from 0.
            query: (tokens, heads, head_dim).
            key, value: (tokens, kv_heads, head_dim).
        """


class Decoder:
    """A loaded model for positions below ``context_length``, in the dtype and on the device of its weights."""

    def __init__(self, spec: ModelSpec, weights: Weights, context_length: int) -> None:
        self.spec = spec
        self.weights = weights
        self.context_length = context_length
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._cos, self._sin = rope_tables(spec, context_length, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Return the hidden states after the last norm, (tokens, hidden).

        Args:
            ids: token ids, int64 (tokens).
            positions: the position of each in its sequence, int64 (tokens).
            attention: holds the cache and knows which token belongs to which sequence.
        """
        spec, eps = self.spec, self.spec.norm_eps
        cos, sin = self._cos[positions], self._sin[positions]
        rotated_heads = spec.heads + spec.kv_heads
        hidden = F.embedding(ids, self.weights.embedding)
        for index, layer in enumerate(self.weights.layers):
            qkv = F.linear(rms_norm(hidden, layer.attention_norm, eps), layer.qkv).view(len(ids), -1, spec.head_dim)
            turned = rotate(qkv[:, :rotated_heads], cos, sin)
            attended = attention(index, turned[:, : spec.heads], turned[:, spec.heads :], qkv[:, rotated_heads:])
            hidden = hidden + F.linear(attended, layer.output)
            gate, up = F.linear(rms_norm(hidden, layer.mlp_norm, eps), layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        return rms_norm(hidden, self.weights.norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary) of hidden states (tokens, hidden)."""
        return F.linear(hidden, self.weights.head).float()
