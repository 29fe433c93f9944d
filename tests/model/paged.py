"""Batches over a paged cache, made by hand: blocks are given out from the highest down, so that tables matter."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tuneserve.kernels.cpu import BLOCK_SIZE
from tuneserve.spec import ModelSpec


class PagedDecoder(Protocol):
    """What both decoders over a paged cache have."""

    spec: ModelSpec
    dtype: torch.dtype

    def forward(self, batch: Any, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor: ...
    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


@dataclass
class HandMadeBatch:
    """What the compiled step and the GPU's take."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    counts: list[int]
    block_tables: torch.Tensor
    adapters: torch.Tensor | None = None


@dataclass
class Paged:
    """A decoder with a cache full of NaN, as whatever was there before may be, and the sequences in it."""

    decoder: PagedDecoder
    blocks: int = 64
    _tables: dict[int, list[int]] = field(default_factory=dict)
    _lengths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.decoder.spec
        shape = (spec.layers, self.blocks, spec.kv_heads, BLOCK_SIZE, spec.head_dim)
        self.keys, self.values = (torch.full(shape, torch.nan, dtype=self.decoder.dtype) for _ in range(2))

    def batch(self, parts: dict[int, list[int]]) -> HandMadeBatch:
        """Append tokens to sequences."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for sequence, tokens in parts.items():
            table, start = self._tables.setdefault(sequence, []), self._lengths.get(sequence, 0)
            self._lengths[sequence] = end = start + len(tokens)
            while len(table) * BLOCK_SIZE < end:
                self.blocks -= 1
                table.append(self.blocks)
            ids += tokens
            positions += range(start, end)
            slots += [table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in range(start, end)]
            starts.append(len(ids))
        assert self.blocks >= 0
        width = max(len(self._tables[sequence]) for sequence in parts)
        tables = [self._tables[sequence] + [0] * (width - len(self._tables[sequence])) for sequence in parts]
        return HandMadeBatch(
            ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            starts=torch.tensor(starts, dtype=torch.int32),
            lengths=torch.tensor([self._lengths[sequence] for sequence in parts], dtype=torch.int32),
            counts=[len(tokens) for tokens in parts.values()],
            block_tables=torch.tensor(tables, dtype=torch.int32),
        )

    def logits(self, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
        """Return each prompt's logits, computed together, ``chunk`` tokens of each at a time."""
        found: list[list[torch.Tensor]] = [[] for _ in prompts]
        for begin in range(0, max(map(len, prompts)), chunk):
            parts = {index: part for index, text in enumerate(prompts) if (part := text[begin : begin + chunk])}
            hidden = self.decoder.forward(self.batch(parts), self.keys, self.values)
            logits = self.decoder.logits(hidden).clone()
            for index, rows in zip(parts, torch.split(logits, [len(part) for part in parts.values()]), strict=True):
                found[index].append(rows)
        return [torch.cat(rows) for rows in found]
