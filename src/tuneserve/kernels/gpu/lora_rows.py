"""The adapters of a linear layer on a GPU, and which row of a batch takes which; see :mod:`.lora`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
from numpy.typing import NDArray

# Columns in the smallest share of a shrink, the most shares, and rows of one adapter at a time.
SPAN = 512
_MOST_SHARES = 8
TILE = 32
PART = 128


@dataclass(frozen=True)
class LoraWeights:
    """The adapters of one linear layer.

    Attributes:
        a: (slots, pieces * rank, columns), zero beyond an adapter's own rank in each piece.
        b: (slots, rows, rank), scaling included, zero beyond an adapter's own rank.
        ranks: int32 (slots), each adapter's own rank, at most ``rank``.
        ends: the row of the result after each piece, three pieces at most.
    """

    a: torch.Tensor
    b: torch.Tensor
    ranks: torch.Tensor
    ends: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The largest rank there is room for."""
        return self.b.shape[2]


@dataclass(frozen=True)
class LoraRows:
    """Which adapter each row of a batch takes, the same for all layers.

    Attributes:
        slots: int32 (rows), -1 for none.
        tile_of: int32 (rows), each row's tile, -1 where it has no adapter.
        order: int32 (rows), the rows, those of one adapter together, those with none last.
        tiles: int32 (rows, 3): where in ``order`` a tile begins, how many rows it has, and its slot.
        counts: int32 (2), how many tiles have an adapter, and how many there are.
        shares, shrunk: room for the shrinks of one linear layer, float32 by shares and summed.
        done: int32 (rows), zero between two launches.
    """

    slots: torch.Tensor
    tile_of: torch.Tensor
    order: torch.Tensor
    tiles: torch.Tensor
    counts: torch.Tensor
    shares: torch.Tensor
    shrunk: torch.Tensor
    done: torch.Tensor

    @classmethod
    def of(cls, rows: int, layers: Sequence[LoraWeights]) -> "LoraRows":
        """Return room for ``rows`` that have no adapter yet, with any of these layers."""
        device, dtype = layers[0].a.device, layers[0].a.dtype
        whole = torch.zeros(rows * 6 + 2, dtype=torch.int32, device=device)
        whole[:rows] = -1
        slots, tile_of, order, tiles, counts = whole.split((rows, rows, rows, rows * 3, 2))
        shapes = [layer.a.shape[1:] for layer in layers]
        shares = max(shrunk * int(triton.cdiv(columns, SPAN)) for shrunk, columns in shapes)
        return cls(
            slots,
            tile_of,
            order,
            tiles.view(rows, 3),
            counts,
            torch.empty(rows * shares, device=device),
            torch.empty(rows * max(shrunk for shrunk, _ in shapes), dtype=dtype, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
        )

    def put(self, slots: list[int]) -> None:
        """Give the first rows these slots, and the others none."""
        rows = len(self.slots)
        packed = np.zeros(rows * 6 + 2, dtype=np.int32)
        mine, tile_of, order, tiles, counts = np.split(packed, (rows, 2 * rows, 3 * rows, 6 * rows))
        mine.fill(-1)
        mine[: len(slots)] = slots
        taken, table = lora_tiles(mine)
        order[: len(taken)], tiles[: table.size] = taken, table.reshape(-1)
        counts[:] = (table[:, 2] >= 0).sum(), len(table)
        tile_of.fill(-1)
        for index, (first, count, slot) in enumerate(table.tolist()):
            if slot >= 0:
                tile_of[taken[first : first + count]] = index
        self._whole().copy_(torch.from_numpy(packed))

    def take(self, other: "LoraRows") -> None:
        """Take the rows of another of as many."""
        self._whole().copy_(other._whole())

    def _whole(self) -> torch.Tensor:
        """Return what says which row takes which, all of which lies together."""
        return self.slots.as_strided((len(self.slots) * 6 + 2,), (1,))


def lora_tiles(slots: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the rows, those of one adapter together, and tiles of them (tiles, 3); see :class:`LoraRows`."""
    order = np.argsort(np.where(slots < 0, np.iinfo(np.int32).max, slots), kind="stable")
    used, firsts, counts = np.unique(slots[order], return_index=True, return_counts=True)
    tiles = [
        (first + done, min(TILE, count - done), slot)
        for slot, first, count in sorted(
            zip(used.tolist(), firsts.tolist(), counts.tolist(), strict=True), key=lambda each: each[1]
        )
        for done in range(0, count, TILE)
    ]
    return order.astype(np.int32), np.array(tiles, dtype=np.int32).reshape(-1, 3)


def span_of(columns: int) -> int:
    """Return how many columns a share of the shrink has."""
    return max(SPAN, int(triton.cdiv(columns, _MOST_SHARES * PART)) * PART)
