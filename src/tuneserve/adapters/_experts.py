"""Experts: LoRA on a parameter that holds all experts of a layer, and on single experts' layers.

Transformers 5 keeps the experts of a layer in one parameter (experts, out, in), or (experts, in, out), whatever the
checkpoint does: many hold a tensor per expert and projection. PEFT's delta of such a parameter (``target_parameters``)
has A (experts * rank, in) with each expert's rows together, and B (out, rank * experts) with each expert's columns
``experts`` apart.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneserve.adapters._draft import Draft, Slot
from tuneserve.adapters._edits import AddLowRank, Blocks, Factors
from tuneserve.adapters._keys import Pair
from tuneserve.adapters._open import LoraAdapter
from tuneserve.adapters._recent import Recent
from tuneserve.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

# In the order in which Transformers' modules declare them, which is the order in which PEFT wraps them.
_DECLARED = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "up_proj_bias", "down_proj", "down_proj_bias")
# The checkpoint's projections that make up a parameter, stacked along the outputs.
_STACKED = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}
_OLDER = {"gate_up_proj": "input_linear", "down_proj": "output_linear"}
# Their experts are stored (in, out) in the model and in the file, so that a square one is too.
_INPUTS_FIRST = ("aria", "aria_text", "gpt_oss", "llama4", "llama4_text")
_ONE_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<index>\d{1,6})\.(?P<projection>\w+)")


@dataclass(frozen=True)
class AddToExperts:
    """Adds every expert's delta to a weight (experts, out, in), or (experts, in, out) if ``transposed``."""

    checkpoint: Checkpoint
    a: str
    b: str
    experts: int
    scaling: float
    transposed: bool

    def apply(self, blocks: Blocks) -> Blocks:
        """See :class:`~tuneserve.adapters._edits.Edit`."""
        a, b = self.checkpoint.read(self.a).float(), self.checkpoint.read(self.b).float()
        rank = len(a) // self.experts

        def added() -> Iterator[tuple[int, "torch.Tensor"]]:
            for start, block in blocks():
                for expert, weight in enumerate(block, start):
                    inputs, outputs = a[expert * rank : (expert + 1) * rank], b[:, expert :: self.experts]
                    left, right = (inputs.T, outputs.T) if self.transposed else (outputs, inputs)
                    weight.addmm_(left, right, alpha=self.scaling)
                yield start, block

        return added


@dataclass(frozen=True)
class AddToExpert:
    """Adds a delta to the outputs from ``offset`` on of one expert of a weight that holds all."""

    factors: Factors
    expert: int
    offset: int
    scaling: float

    def apply(self, blocks: Blocks) -> Blocks:
        """See :class:`~tuneserve.adapters._edits.Edit`."""
        left, right = self.factors.load()
        axis, count = (1, right.shape[1]) if self.factors.transposed else (0, left.shape[0])

        def added() -> Iterator[tuple[int, "torch.Tensor"]]:
            for start, block in blocks():
                if start <= self.expert < start + len(block):
                    part = block[self.expert - start].narrow(axis, self.offset, count)
                    part.addmm_(left, right, alpha=self.scaling)
                yield start, block

        return added


@dataclass(frozen=True)
class ExpertFactors:
    """The delta of one expert, or of the ``rows`` of its outputs that the checkpoint keeps apart."""

    recent: Recent
    a: str
    b: str
    experts: int
    expert: int
    rows: tuple[int, int]

    def load(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """See :class:`~tuneserve.adapters._edits.LowRank`."""
        a, b = self.recent.read(self.a), self.recent.read(self.b)
        rank = len(a) // self.experts
        return b[slice(*self.rows), self.expert :: self.experts], a[self.expert * rank : (self.expert + 1) * rank]


def add_experts(draft: Draft, adapter: LoraAdapter, module: str, pair: Pair, weight: float) -> bool:
    """Add a delta of experts to the draft; False where ``module`` is an ordinary one."""
    container = module
    while container.endswith(".base_layer"):
        container = container.removesuffix(".base_layer")
    depth = (len(module) - len(container)) // len(".base_layer")
    parameters = _targeted(draft, adapter, container)
    if parameters:
        if depth >= len(parameters):
            draft.problems.append(f"{module} is wrapped more often than target_parameters says")
        else:
            _add_parameter(draft, adapter, container, parameters[-1 - depth], pair, weight)
        return True
    match = _ONE_EXPERT.fullmatch(module)
    if match and draft.find(f"{module}.weight") is None:
        return _add_one(draft, adapter, module, match, pair, weight)
    return False


def _targeted(draft: Draft, adapter: LoraAdapter, container: str) -> list[str]:
    """Return the targeted parameters of a module in the order in which PEFT wraps them, the innermost first."""
    names = {target.rpartition(".")[2] for target in adapter.config.target_parameters} - {"weight"}
    found = [
        name
        for name in (*_DECLARED, *sorted(names - set(_DECLARED)))
        if adapter.rules.is_target_parameter(f"{container}.{name}")
        and (_stored_as_one(draft, container, name) or _stored_apart(draft, container, name))
    ]
    if len(found) > 1 and not set(found) <= set(_DECLARED):
        draft.problems.append(f"{container} has {', '.join(found)} trained, and which delta is whose is not known")
    return found


def _add_parameter(draft: Draft, adapter: LoraAdapter, container: str, name: str, pair: Pair, weight: float) -> None:
    parameter = f"{container}.{name}"
    rank, scaling = adapter.rules.rank(parameter), adapter.rules.scaling(parameter) * weight
    a, b = (adapter.checkpoint.tensors[key].shape for key in (pair.a, pair.b))
    bare = (
        len(a) == len(b) == 2 and a[0] == b[1] and not pair.magnitude and not pair.bias and not adapter.config.residual
    )
    slot = _stored_as_one(draft, container, name)
    apart = _stored_apart(draft, container, name) if slot is None else []
    experts = len(apart) if slot is None else slot.shape[0] if len(slot.shape) == 3 else 1
    if not bare or a[0] != rank * experts:
        draft.problems.append(
            f"{parameter} has deltas {list(a)} and {list(b)}, not of rank {rank} for {experts} experts"
        )
    elif slot is None:
        _add_apart(draft, adapter, parameter, apart, pair, scaling)
    elif len(slot.shape) == 2 and slot.shape == (b[0], a[1]):
        slot.edit(AddLowRank(Factors(adapter.checkpoint, pair.a, pair.b), scaling))
    elif len(slot.shape) == 3 and {slot.shape[1:]} & {(b[0], a[1]), (a[1], b[0])}:
        square = a[1] == b[0]
        transposed = draft.family in _INPUTS_FIRST if square else slot.shape[1:] == (a[1], b[0])
        slot.edit(AddToExperts(adapter.checkpoint, pair.a, pair.b, experts, scaling, transposed))
    else:
        draft.problems.append(
            f"{parameter} is {list(slot.shape)} in the base, which deltas {list(a)}, {list(b)} do not fit"
        )


def _add_apart(
    draft: Draft, adapter: LoraAdapter, parameter: str, apart: list[list[Slot]], pair: Pair, scaling: float
) -> None:
    a, b = (adapter.checkpoint.tensors[key].shape for key in (pair.a, pair.b))
    for expert, slots in enumerate(apart):
        if sum(slot.shape[0] for slot in slots) != b[0] or any(slot.shape[1:] != a[1:] for slot in slots):
            draft.problems.append(f"{parameter} has deltas {list(a)} and {list(b)}, which expert {expert} does not fit")
            return
        start = 0
        for slot in slots:
            rows = (start, start + slot.shape[0])
            slot.edit(AddLowRank(ExpertFactors(adapter.recent, pair.a, pair.b, len(apart), expert, rows), scaling))
            start = rows[1]


def _add_one(
    draft: Draft, adapter: LoraAdapter, module: str, match: "re.Match[str]", pair: Pair, weight: float
) -> bool:
    """Add the delta of a single expert's layer to a weight that holds all experts."""
    for name, alternatives in _STACKED.items():
        for projections in alternatives:
            slot = draft.slot(f"{match['experts']}.{name}") if match["projection"] in projections else None
            if slot is None or len(slot.shape) != 3 or draft.family in _INPUTS_FIRST:
                continue
            a, b = (adapter.checkpoint.tensors[key].shape for key in (pair.a, pair.b))
            stacked = (b[0] * len(projections), *a[1:])
            transposed = slot.shape[1:] != stacked
            expert, rank = int(match["index"]), adapter.rules.rank(module)
            plain = not pair.magnitude and not pair.bias and not adapter.config.residual
            fits = slot.shape[1:] in (stacked, stacked[::-1]) and expert < slot.shape[0] and a[0] == b[1] == rank
            if not plain or not fits or not adapter.rules.is_target(module):
                draft.problems.append(f"{module} does not fit {slot.name}, which is {list(slot.shape)}")
                return True
            offset = projections.index(match["projection"]) * b[0]
            factors = Factors(adapter.checkpoint, pair.a, pair.b, transposed)
            slot.edit(AddToExpert(factors, expert, offset, adapter.rules.scaling(module) * weight))
            return True
    return False


def _stored_as_one(draft: Draft, container: str, name: str) -> Slot | None:
    """Return the slot of a parameter that the checkpoint holds as one tensor, under this name or an older one."""
    older = f"{container.removesuffix('.experts')}.{_OLDER.get(name)}.weight"
    return draft.slot(f"{container}.{name}") or draft.slot(older)


def _stored_apart(draft: Draft, container: str, name: str) -> list[list[Slot]]:
    """Return each expert's slots for a parameter that the checkpoint does not hold as one; empty if it has none."""
    for projections in _STACKED.get(name, ()):
        found: list[list[Slot]] = []
        while names := [draft.find(f"{container}.{len(found)}.{projection}.weight") for projection in projections]:
            if None in names:
                break
            found.append([draft.slot_named(each) for each in names if each is not None])
        if found:
            return found
    return []
