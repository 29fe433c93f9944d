"""What an adapter adds to each weight of a base that stays as it is: low-rank deltas, or why it does more than that.

The matching of modules and weights is that of a merge, so that an adapter means the same merged and unmerged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.adapters._draft import Draft, Slot
from tuneserve.adapters._edits import AddLowRank, Factors
from tuneserve.adapters._open import LoraAdapter, listed, open_adapter
from tuneserve.adapters._places import Place, find_places
from tuneserve.adapters._plan import add_adapter, beyond_low_rank
from tuneserve.checkpoint import WeightReader
from tuneserve.errors import AdapterError
from tuneserve.spec import ModelSpec

if TYPE_CHECKING:
    import torch

# Above it the two products cost more than the merged weight does.
MAX_UNMERGED_RANK = 512


@dataclass(frozen=True)
class LowRankDelta:
    """What is added to the tensor ``name`` of the base, (out, in): scaling * B @ A, of ``rank``; read when loaded."""

    name: str
    place: Place
    factors: Factors
    scaling: float
    rank: int

    @property
    def elements(self) -> int:
        """How many numbers A and B have."""
        tensors = self.factors.checkpoint.tensors
        return math.prod(tensors[self.factors.a].shape) + math.prod(tensors[self.factors.b].shape)

    def load(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return A (rank, in) and scaling * B (out, rank) in float32."""
        b, a = self.factors.load()
        return a, b * self.scaling


def read_deltas(
    directory: Path, base: WeightReader, config: Mapping[str, Any], spec: ModelSpec
) -> tuple[LowRankDelta, ...]:
    """Return what the adapter in ``directory`` adds to the linear layers of the native decoder, from headers alone.

    Args:
        directory: has the adapter's configuration and file.
        base: the weights that it was trained over; only their names and shapes are looked at.
        config: the base's ``config.json``.
        spec: what that says.

    Raises:
        AdapterError: it is malformed, does not fit the base, or does more than add low-rank deltas to these layers, so
            that it cannot stay unmerged; all reasons are listed.
    """
    adapter = open_adapter(directory)
    if not isinstance(adapter, LoraAdapter):
        raise AdapterError(
            f"{directory} is of PEFT type {adapter.kind}, and only LoRA is computed unmerged; {_remedy(directory)}."
        )
    if beyond := beyond_low_rank(adapter):
        raise AdapterError(f"{directory} has {', '.join(beyond)}, which only a merge can do; {_remedy(directory)}.")
    draft = Draft(base, config)
    add_adapter(draft, adapter, 1.0)
    slots = [slot for slot in draft.slots.values() if slot.changed]
    places = find_places(spec, (slot.name for slot in slots))
    problems = list(draft.problems)
    deltas = []
    for slot in slots:
        place, found = places[slot.name], _low_rank(slot)
        if reason := _unfit(slot, place, found):
            problems.append(f"{slot.name} {reason}")
        elif place is not None:
            ((factors, scaling),) = found
            rank = factors.checkpoint.tensors[factors.a].shape[0]
            deltas.append(LowRankDelta(slot.name, place, factors, scaling, rank))
            if rank > MAX_UNMERGED_RANK:
                problems.append(f"{slot.name} gets a delta of rank {rank}, above {MAX_UNMERGED_RANK}")
    if problems:
        raise AdapterError(f"{directory} cannot stay unmerged on this base: {listed(problems)}; {_remedy(directory)}.")
    return tuple(deltas)


def _low_rank(slot: Slot) -> list[tuple[Factors, float]]:
    return [
        (edit.factors, edit.scaling)
        for edit in slot.edits
        if isinstance(edit, AddLowRank) and isinstance(edit.factors, Factors)
    ]


def _unfit(slot: Slot, place: Place | None, found: list[tuple[Factors, float]]) -> str | None:
    """Return why a changed weight is not simply a linear layer with a low-rank delta added; None where it is."""
    if place is None:
        return "is no linear layer of attention or of a dense feed-forward layer"
    if slot.source != slot.name or not found or len(found) < len(slot.edits):
        return "is changed in another way than by a low-rank delta"
    if len(found) > 1:
        return "gets several deltas"
    return "is stored transposed" if found[0][0].transposed else None


def _remedy(directory: Path) -> str:
    return f"merge it with 'tuneserve export {directory} OUT', or serve it alone"
