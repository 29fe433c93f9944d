"""Low-rank deltas (arXiv:2106.09685) of many adapters in one batch (arXiv:2310.18547, 2311.03285).

A delta is a shrink, ``s = A x``, and an expand, ``B s``. Linear layers that are computed as one, such as queries, keys
and values, are its pieces: ``A`` has the rows of one after the other, and each range of results takes its own part of
``s``. The shrink is summed in shares of the columns, so that many programs can have a part in it; whoever expands adds
the shares up, always in the same order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two

# Columns in a share of the shrink, and rows of one adapter at a time, as measured.
SPAN = 512
TILE = 32
_BLOCK = 128
# Rows of A at a time, that sums stay in registers.
_MOST_ROWS = 128
_EXPAND = 128


@dataclass(frozen=True)
class LoraWeights:
    """The adapters of one linear layer.

    Attributes:
        a: (slots, pieces * rank, columns), zero beyond an adapter's own rank in each piece.
        b: (slots, rows, rank), scaling included.
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
        order: int32 (rows), the rows with an adapter, those of one adapter together.
        tiles: int32 (rows, 3): where in ``order`` a tile begins, how many rows it has, and its slot.
        count: int32 (1), how many tiles there are.
        shares: float32, room for the shrinks of one layer, see :func:`shares_size`.
    """

    slots: torch.Tensor
    order: torch.Tensor
    tiles: torch.Tensor
    count: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(cls, rows: int, shares: int, device: torch.device) -> "LoraRows":
        """Return room for ``rows`` that have no adapter yet."""
        return cls(
            torch.full((rows,), -1, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
            torch.zeros(rows, 3, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            torch.empty(shares, device=device),
        )

    def put(self, slots: list[int] | NDArray[np.int32]) -> None:
        """Give the first rows these slots, and none to the others."""
        packed = np.zeros(len(self.slots) * 5 + 1, dtype=np.int32)
        mine, order, tiles, count = np.split(packed, np.cumsum((len(self.slots), len(self.slots), self.tiles.numel())))
        mine.fill(-1)
        mine[: len(slots)] = slots
        taken, table = lora_tiles(mine)
        order[: len(taken)], tiles[: table.size], count[0] = taken, table.reshape(-1), len(table)
        device = torch.from_numpy(packed).to(self.slots.device)
        parts = device.split((len(self.slots), len(self.slots), self.tiles.numel(), 1))
        for target, part in zip((self.slots, self.order, self.tiles.view(-1), self.count), parts, strict=True):
            target.copy_(part)


def lora_tiles(slots: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the rows with an adapter, those of one together, and tiles of them (tiles, 3); see :class:`LoraRows`."""
    rows = np.flatnonzero(slots >= 0)
    order = rows[np.argsort(slots[rows], kind="stable")]
    used, firsts, counts = np.unique(slots[order], return_index=True, return_counts=True)
    tiles = [
        (first + done, min(TILE, count - done), slot)
        for slot, first, count in zip(used.tolist(), firsts.tolist(), counts.tolist(), strict=True)
        for done in range(0, count, TILE)
    ]
    return order.astype(np.int32), np.array(tiles, dtype=np.int32).reshape(-1, 3)


def shares_size(rows: int, weights: LoraWeights) -> int:
    """Return how many float32 the shrinks of so many rows take."""
    _, shrunk, columns = weights.a.shape
    return int(triton.cdiv(columns, SPAN)) * rows * shrunk


def lora_reference(x: torch.Tensor, weights: LoraWeights, slots: torch.Tensor) -> torch.Tensor:
    """Return the delta of each row of ``x`` (rows, columns), float32 (rows, results)."""
    delta = torch.zeros(len(x), weights.b.shape[1], device=x.device)
    rank = weights.rank
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        shrunk, begin, own = x[row].float() @ weights.a[slot].float().T, 0, int(weights.ranks[slot])
        for piece, end in enumerate(weights.ends):
            delta[row, begin:end] = weights.b[slot, begin:end, :own].float() @ shrunk[piece * rank :][:own]
            begin = end
    return delta


def lora_shrink(x: torch.Tensor, weights: LoraWeights, rows: LoraRows) -> None:
    """Shrink every row of ``x`` (rows, columns) that has an adapter into ``rows.shares``."""
    _, shrunk, columns = weights.a.shape
    _shrink[(len(x), triton.cdiv(columns, SPAN))](
        x, weights.a, weights.ranks, rows.order, rows.tiles, rows.count, rows.shares, len(x), columns,
        SHRUNK=shrunk, RANK=weights.rank, **shrink_shape(shrunk), num_warps=4, num_stages=3, **dependent(_shrink),
    )  # fmt: skip


def shrink_shape(shrunk: int) -> dict[str, Any]:
    """Return the sizes of tiles of a shrink to so many numbers."""
    return {"PADDED": min(_MOST_ROWS, max(16, power_of_two(shrunk))), "TILE": TILE, "SPAN": SPAN, "PART": _BLOCK}


def lora_expand(weights: LoraWeights, rows: LoraRows, columns: int, out: torch.Tensor) -> torch.Tensor:
    """Add to ``out`` (rows, results) what the shrinks of an input of so many ``columns`` expand to."""
    results = weights.b.shape[1]
    first, second = piece_ends(weights, results)
    _expand[(len(out), triton.cdiv(results, _EXPAND))](
        weights.b, weights.ranks, rows.order, rows.tiles, rows.count, rows.shares, out, len(out), results,
        first, second, SHARES=triton.cdiv(columns, SPAN), SHRUNK=weights.a.shape[1], RANK=weights.rank,
        LANES=max(16, power_of_two(weights.rank)), TILE=TILE, BLOCK=_EXPAND,
        num_warps=4, **dependent(_expand),
    )  # fmt: skip
    return out


def piece_ends(weights: LoraWeights, results: int) -> tuple[int, int]:
    """Return where the first and the second piece of the results end."""
    ends = (*weights.ends, results, results)
    return ends[0], ends[1]


@triton.jit
def shrink_tile(
    x, a, ranks, order, tiles, shares, rows, columns, tile, share,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Shrink a tile's rows over one share of the columns."""
    begin = tl.load(tiles + tile * 3)
    count = tl.load(tiles + tile * 3 + 1)
    slot = tl.load(tiles + tile * 3 + 2)
    rank = tl.load(ranks + slot)
    member = tl.arange(0, TILE)
    row = tl.load(order + begin + member, mask=member < count, other=0).to(tl.int64)
    part = tl.arange(0, PART)
    for first in range(0, SHRUNK, PADDED):
        number = first + tl.arange(0, PADDED)
        real = (number < SHRUNK) & (number % RANK < rank)
        source = a + (slot.to(tl.int64) * SHRUNK + number)[:, None] * columns
        total = tl.zeros((PADDED, TILE), tl.float32)
        for offset in range(0, SPAN, PART):
            column = share * SPAN + offset + part
            here = column < columns
            w = tl.load(source + column[None, :], mask=real[:, None] & here[None, :], other=0.0)
            value = tl.load(
                x + row[None, :] * columns + column[:, None], mask=here[:, None] & (member < count)[None, :], other=0.0
            )
            total = tl.dot(w, value, total)
        place = shares + (share * rows + row[None, :]) * SHRUNK + number[:, None]
        tl.store(place, total, mask=(number < SHRUNK)[:, None] & (member < count)[None, :])


@triton.jit
def _shrink(
    x, a, ranks, order, tiles, tile_count, shares, rows, columns,
    SHRUNK: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr,
    PART: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if tl.program_id(0) >= tl.load(tile_count):
        return
    shrink_tile(
        x, a, ranks, order, tiles, shares, rows, columns, tl.program_id(0), tl.program_id(1), SHRUNK, RANK, PADDED,
        TILE, SPAN, PART,
    )  # fmt: skip


@triton.jit
def _expand(
    b, ranks, order, tiles, tile_count, shares, out, rows, results, first_end, second_end,
    SHARES: tl.constexpr, SHRUNK: tl.constexpr, RANK: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tile = tl.program_id(0)
    if tile >= tl.load(tile_count):
        return
    begin = tl.load(tiles + tile * 3)
    count = tl.load(tiles + tile * 3 + 1)
    slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
    rank = tl.load(ranks + slot)
    member = tl.arange(0, TILE)
    lane = tl.arange(0, LANES)
    row = tl.load(order + begin + member, mask=member < count, other=0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    result = start + tl.arange(0, BLOCK)
    piece_of = (result >= first_end).to(tl.int32) + (result >= second_end).to(tl.int32)
    last = tl.minimum(start + BLOCK, results) - 1
    low = (start >= first_end).to(tl.int32) + (start >= second_end).to(tl.int32)
    high = (last >= first_end).to(tl.int32) + (last >= second_end).to(tl.int32)
    real = (lane < rank) & (lane < RANK)
    place = out + row[:, None] * results + result[None, :]
    valid = (member < count)[:, None] & (result < results)[None, :]
    total = tl.load(place, mask=valid, other=0.0).to(tl.float32)
    for piece in range(low, high + 1):
        shrunk = tl.zeros((TILE, LANES), tl.float32)
        for share in range(SHARES):
            source = shares + (share * rows + row[:, None]) * SHRUNK + piece * RANK + lane[None, :]
            shrunk += tl.load(source, mask=(member < count)[:, None] & real[None, :], other=0.0)
        mine = (result < results) & (piece_of == piece)
        w = tl.load(
            b + (slot * results + result[None, :]) * RANK + lane[:, None], mask=real[:, None] & mine[None, :], other=0.0
        )
        total = tl.dot(shrunk.to(w.dtype), w, total)
    tl.store(place, total.to(out.dtype.element_ty), mask=valid)
