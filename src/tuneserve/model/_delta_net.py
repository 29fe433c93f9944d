"""Linear attention by the gated delta rule, between the projections of a layer and its output."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tuneserve.kernels.causal_conv import causal_conv
from tuneserve.kernels.gated_delta import gated_delta
from tuneserve.spec import DeltaNetSpec


@dataclass(frozen=True)
class DeltaState:
    """What sequences carry from token to token in one layer.

    Attributes:
        past: the last inputs of the convolution, in the model's dtype, (sequences, kernel - 1, conv_size).
        memory: what was written, float32 (sequences, value_heads, key_dim, value_dim).
    """

    past: torch.Tensor
    memory: torch.Tensor


@dataclass(frozen=True)
class DeltaNet:
    """Its own weights, float32.

    Attributes:
        conv: (conv_size, kernel).
        decay: the logarithm of how fast each head forgets, (value_heads).
        step_bias: (value_heads).
        norm: of the output, (value_dim).
    """

    spec: DeltaNetSpec
    eps: float
    conv: torch.Tensor
    decay: torch.Tensor
    step_bias: torch.Tensor
    norm: torch.Tensor

    def __call__(self, projected: torch.Tensor, state: DeltaState) -> torch.Tensor:
        """Return the output for projected inputs.

        Args:
            projected: query, key and value, gate, rates, decays, side by side, (sequences, tokens, width).
            state: what the tokens before them left; it becomes what these leave.

        Returns:
            (sequences, tokens, value_size), in the dtype of ``projected``.
        """
        net, rows = self.spec, projected.shape[:2]
        sizes = [net.conv_size, net.value_size, net.value_heads, net.value_heads]
        mixed, gate, rates, decays = torch.split(projected, sizes, dim=-1)
        mixed = causal_conv(mixed, state.past, self.conv)
        query, key, value = torch.split(F.silu(mixed), [net.key_size, net.key_size, net.value_size], dim=-1)
        out = gated_delta(
            query.reshape(*rows, net.key_heads, net.key_dim),
            key.reshape(*rows, net.key_heads, net.key_dim),
            value.reshape(*rows, net.value_heads, net.value_dim),
            -self.decay.exp() * F.softplus(decays.float() + self.step_bias),
            rates.sigmoid(),
            state.memory,
        )
        normed = F.rms_norm(out, self.norm.shape, self.norm, self.eps)
        gated = normed * F.silu(gate.float()).view(normed.shape)
        return gated.flatten(-2).to(projected.dtype)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything in it."""
        yield from (self.conv, self.decay, self.step_bias, self.norm)
