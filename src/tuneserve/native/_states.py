"""What sequences carry from token to token beside their keys and values, one slot for each that runs."""

import torch

from tuneserve.model import DeltaState, Scan
from tuneserve.native._batch import Batch
from tuneserve.native._cache import zeros
from tuneserve.spec import DeltaNetSpec, ModelSpec


def bytes_per_slot(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Return the bytes that one sequence's state takes in all layers."""
    nets = [layer.delta_net for layer in spec.per_layer if layer.delta_net is not None]
    return sum(
        (net.kernel - 1) * net.conv_size * dtype.itemsize + net.value_size * net.key_dim * torch.float32.itemsize
        for net in nets
    )


class StateCache:
    """The states of all layers that have one; see :class:`~tuneserve.model.DeltaState`, with slots for sequences.

    What is in a slot before a sequence's first token is not looked at.
    """

    def __init__(self, spec: ModelSpec, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        def state(net: DeltaNetSpec) -> DeltaState:
            past = zeros((slots, net.kernel - 1, net.conv_size), dtype, device)
            return DeltaState(past, zeros((slots, net.value_heads, net.key_dim, net.value_dim), torch.float32, device))

        nets = {index: layer.delta_net for index, layer in enumerate(spec.per_layer)}
        self.layers = {index: state(net) for index, net in nets.items() if net is not None}


class StepRecurrence:
    """The states of one step in a :class:`StateCache`; see :class:`tuneserve.model.Recurrence`."""

    def __init__(self, cache: StateCache, batch: Batch) -> None:
        self._cache = cache
        # Those that decode together, then each chunk of a prompt, as (sequences, tokens).
        decodes = batch.decodes
        shapes = [(decodes, 1)] if decodes else []
        shapes += [(1, count) for count in batch.counts[decodes:]]
        self._shapes = shapes
        sequences = [count for count, _ in shapes]
        self._slots = torch.split(batch.state_slots, sequences)
        self._begin = torch.split(batch.positions[batch.starts[:-1].long()] == 0, sequences)

    def __call__(self, layer: int, inputs: torch.Tensor, scan: Scan) -> torch.Tensor:
        """Scan (tokens, in) from the states of their sequences, and keep the next; return (tokens, out)."""
        state = self._cache.layers[layer]
        outs = []
        parts = torch.split(inputs, [sequences * tokens for sequences, tokens in self._shapes])
        for part, shape, slots, begin in zip(parts, self._shapes, self._slots, self._begin, strict=True):
            before = DeltaState(_unless(begin, state.past[slots]), _unless(begin, state.memory[slots]))
            out, after = scan(part.view(*shape, -1), before)
            state.past[slots], state.memory[slots] = after.past, after.memory
            outs.append(out.flatten(0, 1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def _unless(begin: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Return the state with zeros for those that begin, whatever was there."""
    return state.masked_fill_(begin.view(-1, *[1] * (state.dim() - 1)), 0)
