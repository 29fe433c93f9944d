"""What sequences carry from token to token beside their keys and values, one slot for each that runs."""

from dataclasses import dataclass

import torch

from tuneserve.model import DeltaState, Scan
from tuneserve.native._batch import Batch
from tuneserve.native._cache import zeros
from tuneserve.spec import DeltaNetSpec, ModelSpec


def bytes_per_slot(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Return the bytes that one sequence's state takes in all layers."""
    nets = [layer.delta_net for layer in spec.per_layer if layer.delta_net is not None]
    # And once more for those of one layer that are computed together.
    nets += set(nets)
    return sum(
        (net.kernel - 1) * net.conv_size * dtype.itemsize + net.value_size * net.key_dim * torch.float32.itemsize
        for net in nets
    )


class StateCache:
    """The states of all layers that have one; see :class:`~tuneserve.model.DeltaState`, with slots for sequences.

    What is in a slot before a sequence's first token is not looked at. ``scratch`` has room for those of one layer that
    are computed together.
    """

    def __init__(self, spec: ModelSpec, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        def state(net: DeltaNetSpec) -> DeltaState:
            past = zeros((slots, net.kernel - 1, net.conv_size), dtype, device)
            return DeltaState(past, zeros((slots, net.value_heads, net.key_dim, net.value_dim), torch.float32, device))

        nets = {index: layer.delta_net for index, layer in enumerate(spec.per_layer) if layer.delta_net is not None}
        self.layers = {index: state(net) for index, net in nets.items()}
        shared = {net: state(net) for net in nets.values()}
        self.scratch = {index: shared[net] for index, net in nets.items()}


@dataclass(frozen=True)
class _Part:
    """Sequences of equally many tokens: ``shape`` is (sequences, tokens), ``begins`` those without a state yet."""

    shape: tuple[int, int]
    slots: torch.Tensor
    begins: torch.Tensor | None


class StepRecurrence:
    """The states of one step in a :class:`StateCache`; see :class:`tuneserve.model.Recurrence`."""

    def __init__(self, cache: StateCache, batch: Batch) -> None:
        self._cache = cache
        decodes = batch.decodes
        shapes = [(decodes, 1)] if decodes else []
        shapes += [(1, count) for count in batch.counts[decodes:]]
        self._parts, first = [], 0
        for shape in shapes:
            last = first + shape[0]
            begins = [place for place, begins in enumerate(batch.begins[first:last]) if begins]
            new = torch.tensor(begins, device=batch.ids.device) if begins else None
            self._parts.append(_Part(shape, batch.state_slots[first:last], new))
            first = last

    def __call__(self, layer: int, inputs: torch.Tensor, scan: Scan) -> torch.Tensor:
        """Scan (tokens, in) from the states of their sequences, and keep the next; return (tokens, out)."""
        kept = self._cache.layers[layer]
        outs = []
        rows = torch.split(inputs, [sequences * tokens for sequences, tokens in (part.shape for part in self._parts)])
        for part, own in zip(self._parts, rows, strict=True):
            state = _taken(kept, part, self._cache.scratch[layer])
            outs.append(scan(own.view(*part.shape, -1), state).flatten(0, 1))
            kept.past.index_copy_(0, part.slots, state.past)
            kept.memory.index_copy_(0, part.slots, state.memory)
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def _taken(kept: DeltaState, part: _Part, scratch: DeltaState) -> DeltaState:
    """Copy the states of a part's sequences, zeros for those that begin."""
    count = part.shape[0]
    past = torch.index_select(kept.past, 0, part.slots, out=scratch.past[:count])
    memory = torch.index_select(kept.memory, 0, part.slots, out=scratch.memory[:count])
    if part.begins is not None:
        past.index_fill_(0, part.begins, 0)
        memory.index_fill_(0, part.begins, 0)
    return DeltaState(past, memory)
