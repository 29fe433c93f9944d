"""Adapters unmerged in PyTorch: each linear layer adds, to the rows of an adapter, its low-rank product."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F

from tuneserve.adapters import LinearName, linear_shapes
from tuneserve.model._linear import Linear
from tuneserve.model._lora import AdapterWeights, Delta
from tuneserve.model._weights import Weights
from tuneserve.spec import ModelSpec


class LoraStack:
    """The deltas of one linear layer, of all adapters.

    Attributes:
        a: (slots, rank, in), in the dtype of the model; zeros beyond the rank of a slot's own delta.
        b: (slots, out, rank), the scaling in it. Where the layer's weight is fused of several, the ranks of their
            deltas stand beside each other.
    """

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> None:
        self.a = torch.zeros(0, 0, inputs, dtype=dtype, device=device)
        self.b = torch.zeros(0, outputs, 0, dtype=dtype, device=device)

    def put(self, slot: int, deltas: tuple[Delta, ...]) -> None:
        """Let ``slot`` have these deltas, none if there are none."""
        rank = sum(len(delta.a) for delta in deltas)
        slots, wider = max(0, slot + 1 - len(self.a)), max(0, rank - self.a.shape[1])
        if slots or wider:
            self.a = F.pad(self.a, (0, 0, 0, wider, 0, slots))
            self.b = F.pad(self.b, (0, wider, 0, 0, 0, slots))
        self.a[slot] = 0
        self.b[slot] = 0
        start = 0
        for delta in deltas:
            end = start + len(delta.a)
            self.a[slot, start:end] = delta.a
            self.b[slot, delta.first : delta.first + len(delta.b), start:end] = delta.b
            start = end


class AdaptedLinears:
    """The linear layers of a decoder with adapters beside them, each adapter in a slot.

    ``weights`` are those that it was made of, their linear layers wrapped; outside of :meth:`rows_of` they compute what
    these do.
    """

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._groups: list[tuple[int, torch.Tensor]] = []
        self.stacks: dict[tuple[int, LinearName], LoraStack] = {}
        dtype, device = weights.embedding.dtype, weights.embedding.device
        layers = list(weights.layers)
        for (layer, name), (outputs, inputs) in linear_shapes(spec).items():
            self.stacks[layer, name] = stack = LoraStack(outputs, inputs, dtype, device)
            adapted = _AdaptedLinear(getattr(layers[layer], name), stack, self._groups)
            layers[layer] = replace(layers[layer], **{name: adapted})  # type: ignore[arg-type]
        self.weights = replace(weights, layers=tuple(layers))

    def put(self, slot: int, adapter: AdapterWeights) -> None:
        """Let ``slot`` be this adapter, and nothing if it is empty."""
        for key, stack in self.stacks.items():
            if (deltas := adapter.get(key, ())) or slot < len(stack.a):
                stack.put(slot, deltas)

    @contextmanager
    def rows_of(self, slots: torch.Tensor) -> Iterator[None]:
        """Inside, row r of what is computed is of the adapter in slot ``slots[r]``, int32 (rows); -1 is the base."""
        for slot in torch.unique(slots[slots >= 0]).tolist():
            self._groups.append((slot, torch.where(slots == slot)[0]))
        try:
            yield
        finally:
            self._groups.clear()


class _AdaptedLinear:
    """A linear layer; ``groups``, shared by all, are the slots of the rows at hand, and the rows of each."""

    def __init__(self, base: Linear, stack: LoraStack, groups: list[tuple[int, torch.Tensor]]) -> None:
        self._base, self._stack, self._groups = base, stack, groups

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._base(x)
        for slot, rows in self._groups:
            if slot < len(self._stack.a):
                inner = F.linear(x[rows], self._stack.a[slot])
                y.index_add_(0, rows, F.linear(inner, self._stack.b[slot]))
        return y

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from self._base.tensors()
        yield self._stack.a
        yield self._stack.b
