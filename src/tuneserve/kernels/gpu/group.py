"""Rows of a step in the order of the experts that they take, cut into tiles of one expert each."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.route import Routes

# Numbers of pairs times experts that a program compares at once: 64 registers of each thread.
_COMPARED = 8192
_MOST, _NUMBERS = 1024, 3


@dataclass(frozen=True)
class Groups:
    """Pairs of a row and an expert; the expert at ``place`` of a row is pair ``row * per_token + place``.

    Attributes:
        order: int32 (pairs), those of one expert together; what is of no expert is left out.
        tiles: int32 (tiles, 3): the expert, -1 for a tile of none; where in ``order`` the tile begins; its pairs.
        tile: how many pairs a tile has at most.
    """

    order: torch.Tensor
    tiles: torch.Tensor
    tile: int

    @classmethod
    def of(cls, pairs: int, experts: int, tile: int, device: torch.device) -> "Groups":
        """Return memory for as many tiles as so many pairs can come to."""
        begun = min(pairs, experts)
        shape = begun + (pairs - begun) // tile, _NUMBERS
        integers = {"dtype": torch.int32, "device": device}
        return cls(torch.empty(pairs, **integers), torch.empty(shape, **integers), tile)  # type: ignore[call-overload]


def group_reference(routes: Routes, tile: int) -> list[tuple[int, list[int]]]:
    """Return the tiles of :func:`group`, each as its expert and the set of its pairs in order."""
    taken = routes.experts.flatten().tolist()
    found = []
    for expert in range(len(routes.counts)):
        pairs = [pair for pair, one in enumerate(taken) if one == expert]
        found += [(expert, pairs[first : first + tile]) for first in range(0, len(pairs), tile)]
    return found


def group(routes: Routes, groups: Groups) -> None:
    """Write ``groups`` of rows that have been counted."""
    pairs, experts = len(groups.order), len(routes.counts)
    lanes = power_of_two(experts)
    block = min(_MOST, max(1, _COMPARED // lanes))
    assert len(groups.tiles) <= pairs
    _group[(triton.cdiv(pairs, block),)](
        routes.experts, routes.places, routes.counts, groups.order, groups.tiles, pairs, len(groups.tiles),
        EXPERTS=experts, LANES=lanes, BLOCK=block, TILE=groups.tile, num_warps=4, **dependent(_group),
    )  # fmt: skip


@triton.jit
def _group(
    experts, places, counts, order, tiles, pairs, room,
    EXPERTS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.arange(0, LANES)
    item = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts + lane, mask=lane < EXPERTS, other=0)
    begins = tl.cumsum(count, 0) - count
    expert = tl.load(experts + item, mask=item < pairs, other=-1)
    begin = tl.sum(tl.where(lane[None, :] == expert[:, None], begins[None, :], 0), 1)
    place = tl.load(places + item, mask=expert >= 0, other=0)
    tl.store(order + begin + place, item, mask=expert >= 0)
    needed = (count + TILE - 1) // TILE
    ends = tl.cumsum(needed, 0)
    owner = tl.sum((ends[None, :] <= item[:, None]).to(tl.int32), 1)
    mine = lane[None, :] == owner[:, None]
    nth = item - tl.sum(tl.where(mine, (ends - needed)[None, :], 0), 1)
    first = tl.sum(tl.where(mine, begins[None, :], 0), 1) + nth * TILE
    size = tl.minimum(tl.sum(tl.where(mine, count[None, :], 0), 1) - nth * TILE, TILE)
    target = tiles + item * 3
    tl.store(target, tl.where(owner < EXPERTS, owner, -1), mask=item < room)
    tl.store(target + 1, first, mask=item < room)
    tl.store(target + 2, size, mask=item < room)
