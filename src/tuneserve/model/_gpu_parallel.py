"""The decoder on a GPU as one of several that compute a model together; see :mod:`tuneserve.model._parallel`.

The sums are in the captured graphs. Importing this module needs Triton.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import torch

from tuneserve.kernels.gpu.gate import gate
from tuneserve.model._gpu import GpuDecoder
from tuneserve.model._gpu_experts import GpuExperts
from tuneserve.model._gpu_linear import GpuLinear, Norm
from tuneserve.model._gpu_weights import GpuLayer
from tuneserve.model._parallel import add_up, gather
from tuneserve.spec import Activation


class _Shared(ABC):
    """A :class:`~tuneserve.model._gpu_linear.GpuLinear` whose product the devices put together."""

    def __init__(self, part: GpuLinear) -> None:
        self.part = part

    @abstractmethod
    def product(self, x: torch.Tensor, out: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Write the whole product to ``out``."""

    def gated(
        self, x: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor, norm: Norm, activation: Activation
    ) -> torch.Tensor:
        """Write the gated product to ``out``."""
        return gate(self.product(x, scratch, norm), out, activation)

    def add(self, x: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add the product, which is rounded before, to ``hidden``."""
        hidden.add_(self.product(x, torch.empty_like(hidden)))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what the part keeps."""
        return self.part.tensors()


class SummedGpuLinear(_Shared):
    """A layer of which each device has some columns."""

    def product(self, x: torch.Tensor, out: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Write the sum of all devices' products to ``out``."""
        return add_up(self.part.product(x, out, norm))


class GatheredGpuLinear(_Shared):
    """A layer of which each device has so many rows, perhaps more in all than there are."""

    def __init__(self, part: GpuLinear, each: int) -> None:
        super().__init__(part)
        self._each = each

    def product(self, x: torch.Tensor, out: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Write all devices' products to ``out``, one beside the other."""
        return gather(self.part.product(x, out.new_empty(len(x), self._each), norm), out)


class SummedGpuExperts:
    """Experts of each of which each device has a part."""

    def __init__(self, part: GpuExperts) -> None:
        self.part = part

    def add(self, x: torch.Tensor, norm: Norm, live: torch.Tensor, out: torch.Tensor) -> None:
        """Add the sum of all devices' parts, each of which is rounded before, to ``out``."""
        mine = torch.zeros_like(x)
        self.part.add(x, norm, live, mine)
        out.add_(add_up(mine))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what the part keeps."""
        return self.part.tensors()


def join_gpu(decoder: GpuDecoder, size: int) -> GpuDecoder:
    """Let a decoder of a device's share compute with the ``size - 1`` others; before its first step."""
    weights = decoder.weights
    layers = tuple(_joined(layer) for layer in weights.layers)
    head = GatheredGpuLinear(weights.head, -(-decoder.spec.vocab_size // size))
    decoder.weights = replace(weights, layers=layers, head=head)
    return decoder


def _joined(layer: GpuLayer) -> GpuLayer:
    output = SummedGpuLinear(layer.output)
    if layer.experts is not None:
        return replace(layer, output=output, experts=SummedGpuExperts(layer.experts))
    assert layer.down is not None
    return replace(layer, output=output, down=SummedGpuLinear(layer.down))
