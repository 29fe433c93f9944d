"""Sums and gathers over the devices that compute a model together, and the layers of the decoder that need them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
import torch.distributed as dist

from tuneserve.model._decoder import Decoder
from tuneserve.model._experts import Experts
from tuneserve.model._linear import Linear
from tuneserve.model._weights import LayerWeights

# Called all_gather_into_tensor before PyTorch 2.13.
_gather_on_gpus: Callable[..., object] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def add_up(x: torch.Tensor) -> torch.Tensor:
    """Replace ``x`` by the sum over all devices, to the bit the same on each; by NCCL on GPUs.

    On CPUs it is in float32 in the order of their ranks, rounded once.
    """
    if x.is_cuda:
        dist.all_reduce(x)
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    total = parts[0].float()
    for part in parts[1:]:
        total += part
    return x.copy_(total)


def gather(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Put the columns that each device has of ``x`` (rows, columns) beside each other into ``out`` and return it.

    What is beyond the columns of ``out`` is left out.
    """
    parts = x.new_empty(dist.get_world_size(), *x.shape)
    if x.is_cuda:
        _gather_on_gpus(parts, x)
    else:
        dist.all_gather(list(parts), x)
    for part, columns in zip(parts, torch.split(out, x.shape[1], dim=1), strict=False):
        columns.copy_(part[:, : columns.shape[1]])
    return out


@dataclass(frozen=True)
class SummedLinear:
    """A layer of which each device has some columns."""

    part: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, out) of this device's part of the rows of ``x``."""
        return add_up(self.part(x))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what the part keeps."""
        return self.part.tensors()


@dataclass(frozen=True)
class GatheredLinear:
    """A layer of which each device has some of ``rows`` rows."""

    part: Linear
    rows: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, rows) of ``x`` (tokens, in)."""
        return gather(self.part(x), x.new_empty(len(x), self.rows))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what the part keeps."""
        return self.part.tensors()


class SummedExperts(Experts):
    """Experts of each of which each device has a part."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, hidden) of ``x`` (tokens, hidden)."""
        return add_up(super().__call__(x))


def join(decoder: Decoder) -> Decoder:
    """Let a decoder of a device's share compute with those of the others; needs the default process group to run."""
    weights, spec = decoder.weights, decoder.spec
    layers = tuple(_joined(layer) for layer in weights.layers)
    decoder.weights = replace(weights, layers=layers, head=GatheredLinear(weights.head, spec.vocab_size))
    return decoder


def _joined(layer: LayerWeights) -> LayerWeights:
    output = SummedLinear(layer.output)
    if (experts := layer.experts) is not None:
        parts = {field.name: getattr(experts, field.name) for field in fields(experts)}
        return replace(layer, output=output, experts=SummedExperts(**parts))
    return replace(layer, output=output, down=SummedLinear(cast("Linear", layer.down)))
