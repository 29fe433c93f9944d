"""The weights of a layer's experts, and the gate between their two products."""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from tuneserve.kernels.gated import gated, gated_clamped
from tuneserve.kernels.gpu.activation import activated


@dataclass(frozen=True)
class ExpertGate:
    """How the first half of a row and its second are combined; ``alpha`` and ``limit`` are those of ``clamped``."""

    kind: Literal["silu", "gelu_tanh", "clamped"] = "silu"
    alpha: float = 1.0
    limit: float = 0.0

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return (rows, inner) of both halves side by side (rows, 2 * inner)."""
        if self.kind == "clamped":
            return gated_clamped(gate_up, self.alpha, self.limit)
        return gated(gate_up, self.kind)


@dataclass(frozen=True)
class ExpertWeights:
    """One product of all experts: ``weight`` (experts, out, in), contiguous, and perhaps ``bias`` (experts, out)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        assert self.weight.is_contiguous()
        assert self.bias is None or self.bias.is_contiguous()


def experts_reference(
    x: torch.Tensor,
    experts: torch.Tensor,
    shares: torch.Tensor,
    gate_up: ExpertWeights,
    down: ExpertWeights,
    gate: ExpertGate,
) -> torch.Tensor:
    """Return what the experts of each row add up to, in float32: ``shares`` of each; -1 is no expert.

    Args:
        x: (rows, hidden).
        experts: integers (rows, per_token).
        shares: float32 (rows, per_token).
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for row, place in (experts >= 0).nonzero().tolist():
        expert = int(experts[row, place])
        inner = gate(_product(x[row : row + 1].float(), gate_up, expert))
        total[row] += shares[row, place] * _product(inner, down, expert)[0]
    return total


def _product(x: torch.Tensor, weights: ExpertWeights, expert: int) -> torch.Tensor:
    bias = None if weights.bias is None else weights.bias[expert].float()
    return torch.nn.functional.linear(x, weights.weight[expert].float(), bias)


@triton.jit
def combine_halves(first, second, alpha, limit, KIND: tl.constexpr):
    """Return what :class:`ExpertGate` does of the halves in float32."""
    if KIND == "clamped":
        first = tl.minimum(first, limit)
        second = tl.minimum(tl.maximum(second, -limit), limit) + 1.0
        return first / (1.0 + tl.exp(-first * alpha)) * second
    else:  # noqa: RET505
        return activated(first, KIND) * second
