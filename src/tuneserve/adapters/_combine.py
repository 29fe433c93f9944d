"""Several adapters in one model, as PEFT's ``add_weighted_adapter`` defines it.

"cat" is the weighted sum of the deltas, exactly. "svd" is its best approximation of a given rank. "linear" averages the
factors instead, each with the root of its weight, and is only near the sum for adapters that are alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tuneserve.adapters._draft import Draft
from tuneserve.adapters._edits import AddLowRank, Factors
from tuneserve.adapters._open import LoraAdapter, WeightedAdapter
from tuneserve.adapters._plan import beyond_low_rank, check_complete, factors_of, is_expected
from tuneserve.adapters._vocabulary import put_base

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Combination:
    """How several adapters become one; ``rank`` is for svd, by default the largest of the adapters'."""

    kind: Literal["cat", "linear", "svd"] = "cat"
    rank: int | None = None


@dataclass(frozen=True)
class Part:
    """One adapter's delta of a weight; ``factor`` is its scaling times its weight."""

    factors: Factors
    factor: float


@dataclass(frozen=True)
class Averaged:
    """The factors of "linear"."""

    parts: tuple[Part, ...]

    def load(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """See :class:`~tuneserve.adapters._edits.LowRank`."""
        lefts, rights = zip(*(part.factors.load() for part in self.parts), strict=True)
        roots = [math.sqrt(abs(part.factor)) for part in self.parts]
        signed = [math.copysign(root, part.factor) for root, part in zip(roots, self.parts, strict=True)]
        left = sum(matrix * root for matrix, root in zip(lefts, roots, strict=True))
        right = sum(matrix * root for matrix, root in zip(rights, signed, strict=True))
        return left, right


@dataclass(frozen=True)
class Truncated:
    """The factors of "svd", found from the small matrices alone."""

    parts: tuple[Part, ...]
    rank: int

    def load(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """See :class:`~tuneserve.adapters._edits.LowRank`."""
        import torch

        lefts, rights = zip(*(part.factors.load() for part in self.parts), strict=True)
        scaled = [left * part.factor for left, part in zip(lefts, self.parts, strict=True)]
        q_left, r_left = torch.linalg.qr(torch.cat(scaled, dim=1))
        q_right, r_right = torch.linalg.qr(torch.cat(rights).T)
        u, s, vh = torch.linalg.svd(r_left @ r_right.T)
        kept = min(self.rank, len(s))
        return q_left @ (u[:, :kept] * s[:kept]), vh[:kept] @ q_right.T


def add_combined(draft: Draft, adapters: Sequence[WeightedAdapter], combination: Combination) -> None:
    """Add the combination of LoRA adapters to the draft; what does not fit becomes its problems."""
    parts: dict[str, list[Part]] = {}
    ranks = []
    for each in adapters:
        adapter = each.adapter
        assert isinstance(adapter, LoraAdapter), "only LoRA adapters are combined"
        ranks.append(max((adapter.config.r, *adapter.config.rank_pattern.values())))
        beyond = beyond_low_rank(adapter) + ["target_parameters"] * bool(adapter.config.target_parameters)
        if beyond:
            draft.problems.append(f"{adapter.directory.name} has {', '.join(beyond)}, which cannot be combined")
            continue
        put_base(draft, adapter)
        for module, pair in adapter.keys.pairs.items():
            if not is_expected(draft, adapter, module):
                draft.problems.append(f"{module} has a delta in the file but is not a target")
            elif found := factors_of(draft, adapter, module, pair):
                slot, factors = found
                parts.setdefault(slot.name, []).append(Part(factors, adapter.rules.scaling(module) * each.weight))
        check_complete(draft, adapter)
    if combination.kind == "linear" and len(set(ranks)) > 1:
        draft.problems.append(f"linear needs adapters of one rank, and these have {ranks}; choose cat or svd")
        return
    for name, found_parts in parts.items():
        together = tuple(found_parts)
        if combination.kind == "cat":
            draft.slot_named(name).edit(*(AddLowRank(part.factors, part.factor) for part in together))
        elif combination.kind == "linear":
            draft.slot_named(name).edit(AddLowRank(Averaged(together), 1.0))
        else:
            draft.slot_named(name).edit(AddLowRank(Truncated(together, combination.rank or max(ranks)), 1.0))
