"""The key-value cache in memory, and the attention of one step over it."""

import math
from typing import Any

import numpy as np
import torch

from tuneserve.kernels.paged_attention import PagedAttention
from tuneserve.native._batch import Batch
from tuneserve.native._blocks import BLOCK_SIZE
from tuneserve.spec import ModelSpec


def bytes_per_block(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Return the cache bytes that one block takes in all layers."""
    return 2 * spec.layers * spec.kv_heads * BLOCK_SIZE * spec.head_dim * dtype.itemsize


class PagedCache:
    """Keys and values of all layers, each (layers, blocks, kv_heads, block_size, head_dim).

    Eager attention also multiplies what it hides, by zero, so everything in it must be finite: it begins as zeros, and
    what may have become anything else is wiped. On the CPU the memory is reserved, not used: pages become resident as
    blocks are first written.
    """

    def __init__(self, spec: ModelSpec, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (spec.layers, blocks, spec.kv_heads, BLOCK_SIZE, spec.head_dim)
        self.keys = _zeros(shape, dtype, device)
        self.values = _zeros(shape, dtype, device)

    def wipe(self, blocks: tuple[int, ...]) -> None:
        """Overwrite blocks with zeros."""
        for block in blocks:
            self.keys[:, block] = 0
            self.values[:, block] = 0


class StepAttention:
    """The attention of one step over a :class:`PagedCache`; see :class:`tuneserve.model.Attention`."""

    def __init__(self, cache: PagedCache, batch: Batch) -> None:
        self._cache = cache
        self._attend = PagedAttention(
            batch.slots, batch.starts, batch.lengths, batch.block_tables, batch.decodes, BLOCK_SIZE
        )

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Store, then attend; ``options`` are those of :class:`~tuneserve.kernels.paged_attention.PagedAttention`."""
        return self._attend(self._cache.keys[layer], self._cache.values[layer], query, key, value, **options)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy takes zeroed pages from the system and does not touch them; PyTorch would write them all.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
