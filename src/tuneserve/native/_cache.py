"""The key-value cache: one row of slots, each as long as the context, filled as sequences grow."""

import math

import numpy as np
import torch

from tuneserve.kernels.attention import attend
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
        self._positions = positions
        self._slots = torch.arange(step.decodes, device=positions.device)
        self._length = max((segment.start + 1 for segment in step.segments[: step.decodes]), default=0)

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store, then attend; see :class:`tuneserve.model.Attention`."""
        attended = []
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        row = self._decodes
        if row:
            positions = self._positions[:row]
            keys[self._slots, :, positions] = key[:row]
            values[self._slots, :, positions] = value[:row]
            near = slice(0, self._length)
            mask = _mask(positions[:, None], self._length, window, query.dtype)
            context = keys[:row, :, near], values[:row, :, near]
            out = attend(query[:row, None], *context, mask, scale=scale, softcap=softcap, sinks=sinks)
            attended.append(out[:, 0])
        for segment in self._prefills:
            rows, slot = slice(row, row + segment.count), segment.slot
            end = segment.start + segment.count
            keys[slot, :, segment.start : end] = key[rows].transpose(0, 1)
            values[slot, :, segment.start : end] = value[rows].transpose(0, 1)
            mask = _mask(self._positions[None, rows], end, window, query.dtype)
            context = keys[slot, None, :, :end], values[slot, None, :, :end]
            out = attend(query[None, rows], *context, mask, scale=scale, softcap=softcap, sinks=sinks)
            attended.append(out[0])
            row += segment.count
        return attended[0] if len(attended) == 1 else torch.cat(attended)


def _mask(positions: torch.Tensor, length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    columns = torch.arange(length, device=positions.device)
    seen = columns <= positions[..., None]
    if window is not None:
        seen &= columns > positions[..., None] - window
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
