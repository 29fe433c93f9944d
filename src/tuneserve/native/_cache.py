"""The key-value cache: one row of slots, each as long as the context, filled as sequences grow."""

import math

import numpy as np
import torch

from tuneserve.kernels.attention import attend_many, attend_one
from tuneserve.native._scheduler import Move, Step
from tuneserve.spec import ModelSpec


def bytes_per_token(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Return the cache bytes that one token takes."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize


class SlotCache:
    """Keys and values of all layers, each (layers, slots, kv_heads, length, head_dim).

    What lies beyond a sequence's length is masked, but it must be finite: zero times NaN is NaN. So the cache begins as
    zeros. On the CPU the memory is reserved, not used: pages become resident as sequences reach them.
    """

    def __init__(self, spec: ModelSpec, slots: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (spec.layers, slots, spec.kv_heads, length, spec.head_dim)
        self.keys = _zeros(shape, dtype, device)
        self.values = _zeros(shape, dtype, device)

    def move(self, move: Move) -> None:
        """Carry a sequence over to another slot."""
        for cache in (self.keys, self.values):
            cache[:, move.target, :, : move.length] = cache[:, move.source, :, : move.length]

    def clear(self, slot: int, length: int) -> None:
        """Overwrite the first ``length`` tokens of a slot with zeros."""
        for cache in (self.keys, self.values):
            cache[:, slot, :, :length] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy takes zeroed pages from the system and does not touch them; PyTorch would write them all.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


class StepAttention:
    """The attention of one step over a :class:`SlotCache`; tokens are in the order of the step's segments."""

    def __init__(self, cache: SlotCache, step: Step, positions: torch.Tensor) -> None:
        self._cache = cache
        self._decodes = step.decodes
        self._prefills = step.segments[step.decodes :]
        self._positions = positions[: step.decodes]
        self._slots = torch.arange(step.decodes, device=positions.device)
        lengths = [segment.start + 1 for segment in step.segments[: step.decodes]]
        self._length = max(lengths, default=0)
        self._mask = None
        if min(lengths, default=0) < self._length:
            columns = torch.arange(self._length, device=positions.device)
            self._mask = (columns <= self._positions[:, None])[:, None, None]

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store, then attend; see :class:`tuneserve.model.Attention`."""
        attended = [self._decode(layer, query, key, value)] if self._decodes else []
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        row = self._decodes
        for segment in self._prefills:
            rows, slot = slice(row, row + segment.count), segment.slot
            end = segment.start + segment.count
            keys[slot, :, segment.start : end] = key[rows].transpose(0, 1)
            values[slot, :, segment.start : end] = value[rows].transpose(0, 1)
            attended.append(attend_many(query[rows], keys[slot, :, :end], values[slot, :, :end]))
            row += segment.count
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _decode(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        count = self._decodes
        keys, values = self._cache.keys[layer, :count], self._cache.values[layer, :count]
        keys[self._slots, :, self._positions] = key[:count]
        values[self._slots, :, self._positions] = value[:count]
        return attend_one(query[:count], keys[:, :, : self._length], values[:, :, : self._length], self._mask)
