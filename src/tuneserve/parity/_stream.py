"""A Transformers model that is filled layer by layer while it runs.

The model's own forward pass drives everything: before a layer runs its weights are read and put in place in float32,
and after it they are taken out again. Of the embedding only the rows in use are there, and the output head is
multiplied a few rows at a time, so that neither is ever a whole float32 matrix.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tuneserve.errors import SourceError
from tuneserve.parity._adapter import attach, needs_whole_base, reads_rows, wrappers
from tuneserve.parity._shell import empty_model, unloadable
from tuneserve.parity._sides import Side
from tuneserve.parity._weights import ModelWeights

# A model of at most this many weights can stay in memory, so that it can generate too.
RESIDENT_WEIGHTS = 150_000_000
_ROWS = 8192


@dataclass(frozen=True)
class Slot:
    """Where the weight ``name`` of the model goes: into ``module`` as ``attribute``."""

    name: str
    module: Any
    attribute: str

    @property
    def tensor(self) -> torch.Tensor:
        """What is there now."""
        found: torch.Tensor = getattr(self.module, self.attribute)
        return found

    def put(self, tensor: torch.Tensor) -> None:
        """Put a weight, or its absence (a tensor on the meta device), in place."""
        store = self.module._buffers if self.attribute in self.module._buffers else self.module._parameters
        is_parameter = store is self.module._parameters
        store[self.attribute] = torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor


@dataclass(frozen=True)
class Unit:
    """What is filled at once: a layer, or a module outside the layers. ``runs`` is what is called."""

    runs: Any
    slots: tuple[Slot, ...]


class StreamedModel:
    """``side`` as a model to run; ``resident`` keeps every weight once it is read.

    ``on_unit`` is called with each unit of weights after it has run and while it is still filled, the embedding and the
    output head aside. ``note`` says why an adapter needed all weights at once, None where it did not;
    then too it is ``resident``.
    """

    def __init__(self, side: Side, *, resident: bool = False) -> None:
        """Build the model and find its weights, reading none of them (but all if resident).

        Raises:
            SourceError: Transformers or PEFT cannot load it.
            AdapterError: it has an adapter without weights.
        """
        self.side = side
        self.on_unit: Callable[[Unit], None] | None = None
        model = empty_model(side.config, side.name)
        self.weights = ModelWeights(model, side.reader, side.name)
        self.config = model.config
        self.buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.device.type != "meta"}
        self.units = list(_units(model, set(self.weights.shapes)))
        self._replaced: frozenset[tuple[int, str]] = frozenset()
        self.note = needs_whole_base(side.adapter_dir) if side.adapter_dir else None
        self.resident = resident or self.note is not None
        self._selected: torch.Tensor | None = None
        # The memory of the last layer, for the next: given back to the allocator each time, it would scatter.
        self._spare: dict[tuple[int, ...], list[torch.Tensor]] = {}
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if self.resident:
            for unit in self.units:
                self._fill(unit, required=False)
        self.model = model
        if side.adapter_dir:
            self.model, self._replaced = attach(model, side.adapter_dir, side.name, empty=self.note is None)
        self.wrappers = wrappers(self.model) if side.adapter_dir else {}
        by_rows = [module for module in (embedding, head) if not self.resident and self._by_rows(module)]
        for unit in self.units:
            if any(unit.runs is module for module in by_rows):
                self._hook_rows(unit)
            else:
                self._hook(unit)
        head = self.wrappers.get(id(head), head)
        if head is not None:
            head.register_forward_pre_hook(self._select)

    @property
    def vocabulary(self) -> int:
        """The number of tokens it tells the probabilities of.

        Raises:
            SourceError: it has none.
        """
        head = self.model.get_output_embeddings()
        if head is None:
            raise SourceError(f"{self.side.name} has no output head, so it is no language model; name one that is.")
        return int(head.weight.shape[0])

    def logits(self, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits at the ``wanted`` positions, (count, vocabulary).

        ``ids`` (batch, length), int64, is padded on the right, where causal models do not look; ``wanted`` is a mask
        of the same shape.

        Raises:
            SourceError: the model cannot run.
        """
        self._selected = wanted
        try:
            found: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise unloadable(self.side.name, error) from error
        finally:
            self._selected = None
            self._spare.clear()
        return found[0] if found.shape[:2] != wanted.shape else found[wanted]

    def generate(self, ids: torch.Tensor, stops: frozenset[int], limit: int) -> list[int]:
        """Return the greedy continuation of ``ids`` (1, length), up to a stop token (included) or the limit.

        Raises:
            SourceError: the model cannot run.
        """
        made: list[int] = []
        cache = None
        try:
            while len(made) < limit:
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                made.append(int(output.logits[0, -1].argmax()))
                if made[-1] in stops:
                    break
                ids = torch.tensor([made[-1:]])
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise unloadable(self.side.name, error) from error
        return made

    def base_weight(self, slot: Slot) -> torch.Tensor:
        """Return the weight of ``slot`` without the adapter, in float32 or its stored dtype."""
        present = slot.tensor
        if self.replaced(slot):
            return self._read(slot)
        whole = tuple(present.shape) == self.weights.shapes[slot.name] and present.device.type != "meta"
        return present.detach() if whole and self.note is None else self._read(slot)

    def replaced(self, slot: Slot) -> bool:
        """Return whether the adapter brings this weight itself, so that it stays in place."""
        return (id(slot.module), slot.attribute) in self._replaced

    def require(self, slot: Slot) -> None:
        """Fill ``slot`` if it is not filled."""
        present = slot.tensor
        if present.device.type == "meta" or tuple(present.shape) != self.weights.shapes[slot.name]:
            slot.put(self._float32(self._read(slot)))

    def release(self, unit: Unit) -> None:
        """Take the weights of ``unit`` out again, unless they stay."""
        if self.resident:
            return
        for slot in unit.slots:
            shape, present = self.weights.shapes[slot.name], slot.tensor
            if present.device.type == "meta" or self.replaced(slot):
                continue
            if present.dtype is torch.float32 and tuple(present.shape) == shape:
                self._spare.setdefault(shape, []).append(present.detach())
            slot.put(torch.empty(shape, device="meta"))

    def _select(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> Any:
        """Let only the wanted positions through to the output head; what follows it works position by position."""
        if self._selected is None or inputs[0].shape[:-1] != self._selected.shape:
            return None
        return (inputs[0][self._selected].unsqueeze(0), *inputs[1:])

    def _by_rows(self, module: Any) -> bool:
        wrapper = self.wrappers.get(id(module))
        if wrapper is not None and not reads_rows(wrapper):
            return False
        if isinstance(module, torch.nn.Embedding):
            return next(iter(inspect.signature(module.forward).parameters), "") in ("input", "input_ids")
        return type(module) is torch.nn.Linear

    def _hook(self, unit: Unit) -> None:
        runs = self.wrappers.get(id(unit.runs), unit.runs)
        if not self.resident:
            runs.register_forward_pre_hook(lambda *_: self._fill(unit, required=True))
        runs.register_forward_hook(lambda *_: self._leave(unit))

    def _hook_rows(self, unit: Unit) -> None:
        (weight,) = [slot for slot in unit.slots if slot.attribute == "weight"]
        others = Unit(unit.runs, tuple(slot for slot in unit.slots if slot is not weight))
        module = unit.runs
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None

            def gather(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
                used, places = torch.unique(inputs[0], return_inverse=True)
                weight.put(self._read(weight)[used].float())
                return (places, *inputs[1:])

            module.register_forward_pre_hook(gather)
        else:
            module.register_forward_pre_hook(lambda *_: self._fill(others, required=True))
            module.forward = lambda hidden: _linear_by_rows(hidden, self._read(weight), module.bias)
        module.register_forward_hook(lambda *_: self._leave(unit))

    def _read(self, slot: Slot) -> torch.Tensor:
        return self.weights.read([slot.name])[slot.name]

    def _fill(self, unit: Unit, *, required: bool) -> None:
        slots = {slot.name: slot for slot in unit.slots if not self.replaced(slot)}
        if required:
            absent = [name for name in slots if name not in self.weights]
            if absent:
                self.weights.read(absent[:1])
        for names in self.weights.names(iter(slots)):
            tensors = self.weights.read(names)
            for name in names:
                tensor = tensors.pop(name)
                slots[name].put(self._float32(tensor) if tensor.is_floating_point() else tensor)

    def _float32(self, tensor: torch.Tensor) -> torch.Tensor:
        spare = self._spare.get(tuple(tensor.shape))
        return spare.pop().copy_(tensor) if spare else tensor.float()

    def _leave(self, unit: Unit) -> None:
        if self.on_unit is not None:
            self.on_unit(unit)
        self.release(unit)


def _linear_by_rows(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result = torch.empty(*hidden.shape[:-1], weight.shape[0])
    for start in range(0, weight.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        result[..., rows] = functional.linear(hidden, weight[rows].float(), None if bias is None else bias[rows])
    return result


def _units(model: Any, stored: set[str]) -> Iterator[Unit]:
    """Divide the model: each item of an outermost list of modules is one unit, and each module outside them.

    ``stored`` are the names that a checkpoint has, which leaves computed buffers out.
    """

    def walk(module: Any, path: str) -> Iterator[Unit]:
        own = [*_slots(module, path, recurse=False)]
        for name, child in module.named_children():
            inner = f"{path}{name}."
            if isinstance(child, torch.nn.ParameterList | torch.nn.ParameterDict):
                own += _slots(child, inner, recurse=True)
            elif isinstance(child, torch.nn.ModuleList):
                for index, item in child.named_children():
                    yield Unit(item, tuple(_slots(item, f"{inner}{index}.", recurse=True)))
            else:
                yield from walk(child, inner)
        if own:
            yield Unit(module, tuple(own))

    def _slots(module: Any, path: str, *, recurse: bool) -> Iterator[Slot]:
        for prefix, part in module.named_modules(remove_duplicate=False) if recurse else [("", module)]:
            home = f"{path}{prefix}." if prefix else path
            for attribute in (*part._parameters, *part._buffers):
                if home + attribute in stored:
                    yield Slot(home + attribute, part, attribute)

    return walk(model, "")
