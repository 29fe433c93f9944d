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
    sizes = [sizes for layer in range(spec.layers) if (sizes := spec.cache_sizes(layer)) is not None]
    return sum(2 * kv_heads * BLOCK_SIZE * head_dim * dtype.itemsize for kv_heads, head_dim in sizes)


class PagedCache:
    """Keys and values of all layers that keep them, in one tensor each for all layers of the same sizes.

    Such a tensor is (layers, blocks, kv_heads, block_size, head_dim). Eager attention also multiplies what it hides, by
    zero, so everything in it must be finite: it begins as zeros, and what may have become anything else is wiped. On
    the CPU the memory is reserved, not used: pages become resident as blocks are first written.
    """

    def __init__(self, spec: ModelSpec, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        layers: dict[tuple[int, int], list[int]] = {}
        for layer in range(spec.layers):
            if (sizes := spec.cache_sizes(layer)) is not None:
                layers.setdefault(sizes, []).append(layer)
        self._groups: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._places: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for (kv_heads, head_dim), group in layers.items():
            shape = (len(group), blocks, kv_heads, BLOCK_SIZE, head_dim)
            keys, values = zeros(shape, dtype, device), zeros(shape, dtype, device)
            self._groups.append((keys, values))
            self._places |= {layer: (keys[place], values[place]) for place, layer in enumerate(group)}

    @property
    def keys(self) -> torch.Tensor:
        """The keys of a model whose layers all keep the same sizes."""
        ((keys, _),) = self._groups
        return keys

    @property
    def values(self) -> torch.Tensor:
        """The values of a model whose layers all keep the same sizes."""
        ((_, values),) = self._groups
        return values

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and the values of a layer that keeps them, each (blocks, kv_heads, block_size, head_dim)."""
        return self._places[index]

    def wipe(self, blocks: tuple[int, ...]) -> None:
        """Overwrite blocks with zeros."""
        for block in blocks:
            for keys, values in self._groups:
                keys[:, block] = 0
                values[:, block] = 0


class StepAttention:
    """The attention of one step over a :class:`PagedCache`; see :class:`tuneserve.model.Attention`."""

    def __init__(self, cache: PagedCache, batch: Batch) -> None:
        self._cache = cache
        self._attend = PagedAttention(
            batch.slots, batch.starts, batch.lengths, batch.block_tables, batch.decodes, BLOCK_SIZE
        )

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor | None, value: torch.Tensor | None, **options: Any
    ) -> torch.Tensor:
        """Store, then attend; ``options`` are those of :class:`~tuneserve.kernels.paged_attention.PagedAttention`."""
        return self._attend(*self._cache.layer(layer), query, key, value, **options)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of zeros; on the CPU it takes no memory until it is written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy takes zeroed pages from the system and does not touch them; PyTorch would write them all.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
