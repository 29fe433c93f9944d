"""A feed-forward layer of experts: a router chooses a few of them for each token (arXiv:1701.06538)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tuneserve.kernels.gated import gated, gated_clamped
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.spec import Activation, ExpertsSpec


@dataclass(frozen=True)
class ExpertLinears:
    """The same linear layer of all experts: ``weight`` (experts, out, in), and perhaps ``bias`` (experts, out)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __getitem__(self, expert: int) -> DenseLinear:
        """Return that of one expert, over the same memory."""
        return DenseLinear(self.weight[expert], None if self.bias is None else self.bias[expert])

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the weights, and the biases if there are any."""
        return DenseLinear(self.weight, self.bias).tensors()


@dataclass(frozen=True)
class SharedExpert:
    """The expert that all tokens take, as far as the sigmoid of ``gate`` lets it through."""

    activation: Activation
    gate_up: Linear
    down: Linear
    gate: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, hidden) of ``x`` (tokens, hidden)."""
        return self.gate(x).sigmoid() * self.down(gated(self.gate_up(x), self.activation))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything in it."""
        for linear in (self.gate_up, self.down, self.gate):
            yield from linear.tensors()


@dataclass(frozen=True)
class Experts:
    """The weights of one layer's experts; ``gate_up`` of each has the gate's rows before those of up.

    ``dequantised`` says how many of the tensors that they were read from are stored in few bits.
    """

    spec: ExpertsSpec
    activation: Activation
    router: Linear
    gate_up: ExpertLinears
    down: ExpertLinears
    shared: SharedExpert | None = None
    dequantised: int = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, hidden) of ``x`` (tokens, hidden)."""
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        # In the order of their numbers, so that a token's sum does not depend on what shares its batch.
        for expert in torch.unique(chosen).tolist():
            tokens, places = torch.where(chosen == expert)
            inner = self._gated(self.gate_up[expert](x[tokens]))
            out.index_add_(0, tokens, self.down[expert](inner) * weights[tokens, places, None])
        return out if self.shared is None else out + self.shared(x)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights and the numbers of the experts that each token takes, both (tokens, per_token)."""
        scores = self.router(x).float()
        if self.spec.normalised:
            best, chosen = scores.topk(self.spec.per_token)
            weights = best.softmax(-1)
        else:
            weights, chosen = scores.softmax(-1).topk(self.spec.per_token)
        return weights.to(x.dtype), chosen

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything in it."""
        for linear in (self.router, self.gate_up, self.down):
            yield from linear.tensors()
        if self.shared is not None:
            yield from self.shared.tensors()

    def _gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        swiglu = self.spec.swiglu
        if swiglu is None:
            return gated(gate_up, self.activation)
        return gated_clamped(gate_up, swiglu.alpha, swiglu.limit)
