"""The adapters of one linear layer of a decoder on a GPU, in the order in which its kernels take them."""

from dataclasses import dataclass

import torch

from tuneserve.adapters import LinearName
from tuneserve.kernels.gpu.lora_join import joined_columns, put_joined
from tuneserve.kernels.gpu.lora_rows import LoraWeights
from tuneserve.model._gpu_linear import DenseGpuLinear
from tuneserve.model._lora import Delta
from tuneserve.spec import ModelSpec

# Columns beside a weight that cost a product less than an expand by itself does.
_MOST_JOINED = 256


@dataclass
class AdaptedLayer:
    """A linear layer's shape and its adapters, where any changes it.

    Attributes:
        arrived: for the programs of its product.
        base: its weight, where that is dense.
        joined: the weight and the expands of all slots beside it, where these are few; ``base`` is over its memory.
    """

    columns: int
    ends: tuple[int, ...]
    arrived: torch.Tensor
    base: DenseGpuLinear | None = None
    adapters: LoraWeights | None = None
    joined: torch.Tensor | None = None

    def join(self) -> None:
        """Have the expands beside the weight if they are few and there is memory; else only the weight."""
        if self.base is None:
            return
        weight, extra = self.base.weight, 0 if self.adapters is None else joined_columns(self.adapters)
        if self.adapters is None or extra > _MOST_JOINED:
            self.joined, self.base.weight = None, weight.contiguous()
            return
        try:
            joined = weight.new_zeros(len(weight), self.columns + extra)
        except torch.OutOfMemoryError:
            self.joined, self.base.weight = None, weight.contiguous()
            return
        joined[:, : self.columns] = weight
        for slot in range(len(self.adapters.ranks)):
            put_joined(joined, self.adapters, slot)
        self.joined, self.base.weight = joined, joined[:, : self.columns]


def piece_ends_of(spec: ModelSpec, name: LinearName, outputs: int) -> tuple[int, ...]:
    """Return the row after each of the linear layers that are computed as one."""
    if name == "qkv":
        return spec.q_size, (spec.q_size + outputs) // 2, outputs
    return (outputs // 2, outputs) if name == "gate_up" else (outputs,)


def pieces_of(ends: tuple[int, ...], deltas: tuple[Delta, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return A (rank, in) and B (rows, rank) of each piece; a delta of fused weights is part of each of its pieces."""
    parts, begin = [], 0
    for end in ends:
        factors, shape = [], deltas[0].a.shape[1]
        for delta in deltas:
            first, last = max(begin, delta.first), min(end, delta.first + len(delta.b))
            if first < last:
                b = delta.b.new_zeros(end - begin, delta.b.shape[1])
                b[first - begin : last - begin] = delta.b[first - delta.first : last - delta.first]
                factors.append((delta.a, b))
        a = torch.cat([a for a, _ in factors]) if factors else deltas[0].a.new_zeros(0, shape)
        b = torch.cat([b for _, b in factors], 1) if factors else deltas[0].b.new_zeros(end - begin, 0)
        parts.append((a, b))
        begin = end
    return parts


def grown(layer: AdaptedLayer, slots: int, rank: int, dtype: torch.dtype, device: torch.device) -> LoraWeights:
    """Return zeroed room for so many slots and ranks, with what a layer has."""
    pieces, outputs = len(layer.ends), layer.ends[-1]
    a = torch.zeros(slots, pieces, rank, layer.columns, dtype=dtype, device=device)
    b = torch.zeros(slots, outputs, rank, dtype=dtype, device=device)
    ranks = torch.zeros(slots, dtype=torch.int32, device=device)
    if (old := layer.adapters) is not None:
        had = len(old.ranks)
        a[:had, :, : old.rank] = old.a.view(had, pieces, old.rank, -1)
        b[:had, :, : old.rank] = old.b
        ranks[:had] = old.ranks
    return LoraWeights(a.view(slots, pieces * rank, -1), b, ranks, layer.ends)


def fill(
    adapters: LoraWeights, ends: tuple[int, ...], slot: int, parts: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Let a slot be an adapter of these pieces, of none where there are none."""
    adapters.a[slot] = 0
    adapters.b[slot] = 0
    begin = 0
    for piece, ((a, b), end) in enumerate(zip(parts, ends, strict=True) if parts else ()):
        adapters.a[slot, piece * adapters.rank :][: len(a)] = a
        adapters.b[slot, begin:end, : b.shape[1]] = b
        begin = end
    adapters.ranks[slot] = max((len(a) for a, _ in parts), default=0)
