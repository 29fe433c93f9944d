"""Linear layers that are read when they are packed, so that no model is in memory twice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tuneserve.checkpoint import StoredCodes
from tuneserve.model._linear import DenseLinear


@dataclass(frozen=True)
class DeferredLinear:
    """A layer still in its files; reading raises what the reader does.

    Attributes:
        names: of the weights that stand on each other.
        load: reads them, dequantised.
        read_codes: reads one of them as it is stored, None where that is in full.
        read_bias: reads the bias, if the layer has one.
        stored_as: how those that are stored in few bits are.
    """

    names: tuple[str, ...]
    load: Callable[[], DenseLinear]
    read_codes: Callable[[str], StoredCodes | None]
    read_bias: Callable[[], torch.Tensor | None]
    stored_as: tuple[str, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Read the layer and multiply; only for a layer that is used once."""
        return self.load()(x)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield nothing: it keeps nothing."""
        return iter(())

    def codes(self) -> list[StoredCodes] | None:
        """Return the weights as they are stored, None where one of them is not in few bits."""
        found = []
        for name in self.names:
            if (codes := self.read_codes(name)) is None:
                return None
            found.append(codes)
        return found
