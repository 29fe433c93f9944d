"""Linear layers behind one call, so that other kinds of weights can stand where a dense one does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F


class Linear(Protocol):
    """Multiplies rows by a weight, however that is stored."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, out) of ``x`` (tokens, in), in its dtype."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what it keeps in memory."""


@dataclass(frozen=True)
class DenseLinear:
    """A weight (out, in) in the dtype of the model, and perhaps a bias (out)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, out) of ``x`` (tokens, in)."""
        return F.linear(x, self.weight, self.bias)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the weight, and the bias if there is one."""
        yield self.weight
        if self.bias is not None:
            yield self.bias
