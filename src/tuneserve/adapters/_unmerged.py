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
from tuneserve.adapters._plan import add_adapter, beyond_low_rank
from tuneserve.checkpoint import WeightReader
from tuneserve.errors import AdapterError

if TYPE_CHECKING:
    import torch

# Above it the two products cost more than the merged weight does.
MAX_UNMERGED_RANK = 512


@dataclass(frozen=True)
class LowRankDelta:
    """What is added to one weight (out, in) of the base: scaling * B @ A, of ``rank``; read when it is loaded."""

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


def read_deltas(directory: Path, base: WeightReader, config: Mapping[str, Any]) -> dict[str, LowRankDelta]:
    """Return what the adapter in ``directory`` adds to each of the base's tensors, by name, from headers alone.

    Args:
        directory: has the adapter's configuration and file.
        base: the weights that it was trained over; only their names and shapes are looked at.
        config: the base's ``config.json``.

    Raises:
        AdapterError: it is malformed, does not fit the base, or does more than add low-rank deltas to weights, so that
            it cannot stay unmerged; all reasons are listed.
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
    changed = {name: slot for name, slot in draft.slots.items() if slot.changed}
    problems = draft.problems or [f"{name} {reason}" for name, slot in changed.items() if (reason := _unfit(slot))]
    if problems:
        raise AdapterError(f"{directory} cannot stay unmerged on this base: {listed(problems)}; {_remedy(directory)}.")
    return {name: _delta(slot) for name, slot in changed.items()}


def _delta(slot: Slot) -> LowRankDelta:
    ((factors, scaling),) = _low_rank(slot)
    return LowRankDelta(factors, scaling, factors.checkpoint.tensors[factors.a].shape[0])


def _low_rank(slot: Slot) -> list[tuple[Factors, float]]:
    return [
        (edit.factors, edit.scaling)
        for edit in slot.edits
        if isinstance(edit, AddLowRank) and isinstance(edit.factors, Factors)
    ]


def _unfit(slot: Slot) -> str | None:
    """Return why a changed weight is not simply one with a low-rank delta added; None where it is."""
    found = _low_rank(slot)
    if slot.source != slot.name or not found or len(found) < len(slot.edits) or len(slot.shape) != 2:
        return "is changed in another way than by a low-rank delta"
    if len(found) > 1:
        return "gets several deltas"
    if found[0][0].transposed:
        return "is an embedding, or stored transposed"
    if (rank := _delta(slot).rank) > MAX_UNMERGED_RANK:
        return f"gets a delta of rank {rank}, above {MAX_UNMERGED_RANK}"
    return None


def _remedy(directory: Path) -> str:
    return f"merge it with 'tuneserve export {directory} OUT', or serve it alone"
