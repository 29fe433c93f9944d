"""What each layer gets of a token beside the hidden state, from an embedding of its own (Gemma 3n and 4)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tuneserve.kernels.gated import gated
from tuneserve.kernels.rms_norm import rms_norm
from tuneserve.model._linear import Linear
from tuneserve.spec import Activation

_ROOT_OF_HALF = 2.0**-0.5


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of all layers: ``embedding`` is (vocabulary, layers * size), ``norm`` (size)."""

    embedding: torch.Tensor
    projection: Linear
    norm: torch.Tensor
    eps: float

    def __call__(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return (tokens, layers, size) of token ids (tokens) and their scaled embeddings (tokens, hidden)."""
        size = len(self.norm)
        scale = torch.tensor(size**0.5, dtype=hidden.dtype, device=hidden.device)
        own = (F.embedding(ids, self.embedding) * scale).view(len(ids), -1, size)
        projected = (self.projection(hidden) * hidden.shape[-1] ** -0.5).view(len(ids), -1, size)
        return (rms_norm(projected, self.norm, self.eps) + own) * _ROOT_OF_HALF

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything in it."""
        yield from (self.embedding, self.norm, *self.projection.tensors())


@dataclass(frozen=True)
class LayerInput:
    """How one layer takes its input: ``norm`` is (hidden)."""

    gate: Linear
    projection: Linear
    norm: torch.Tensor
    activation: Activation
    eps: float

    def __call__(self, hidden: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Return what is added to hidden states (tokens, hidden) for the layer's inputs (tokens, size)."""
        inner = gated(torch.cat((self.gate(hidden), given), dim=-1), self.activation)
        return rms_norm(self.projection(inner), self.norm, self.eps)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything in it."""
        yield from (*self.gate.tensors(), *self.projection.tensors(), self.norm)
