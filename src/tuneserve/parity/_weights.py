"""A checkpoint's tensors under the names of a Transformers model's parameters, read when they are asked for.

Transformers renames and fuses tensors as it loads them (the experts of a layer become one parameter). Its own
conversion table and operations are used for that.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

from tuneserve.checkpoint import WeightReader
from tuneserve.errors import SourceError
from tuneserve.parity._shell import unloadable


@dataclass
class _Group:
    """What a conversion takes (pairs of pattern and name) and makes (names of parameters)."""

    transform: Any
    target: str
    sources: list[tuple[str, str]] = field(default_factory=list)
    targets: tuple[str, ...] = ()

    def convert(self, model: Any, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        transform = deepcopy(self.transform)
        for pattern, source in self.sources:
            transform.add_tensor(self.target, source, pattern, lambda source=source: read(source))
        made = transform.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class ModelWeights:
    """The parameters and saved buffers of ``model`` as ``reader`` has them.

    ``unexpected`` are tensors that the model has no place for. ``dtypes`` names the stored dtype of each parameter.
    """

    def __init__(self, model: Any, reader: WeightReader, name: str) -> None:
        """Find what goes where, from names and shapes alone; ``model`` is as yet without an adapter.

        Raises:
            SourceError: a tensor has another shape than the model's configuration says.
        """
        self._model, self._reader, self._name = model, reader, name
        self.shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        self._tied = _tied(model)
        self.unexpected: list[str] = []
        self.dtypes: dict[str, str] = {}
        self._groups: dict[str, _Group] = {}
        for group in self._plan():
            self._add(group)

    def __contains__(self, name: str) -> bool:
        return self._owner(name) is not None

    def names(self, wanted: Iterator[str]) -> list[list[str]]:
        """Return those of the ``wanted`` parameters that there are, those made by one conversion together."""
        together: dict[str, list[str]] = {}
        for name in wanted:
            owner = self._owner(name)
            if owner is not None:
                together.setdefault(self._groups[owner].target, []).append(name)
        return list(together.values())

    def stored_dtype(self, name: str) -> str:
        """Return the stored dtype (safetensors' name for it) of a parameter."""
        owner = self._owner(name)
        assert owner is not None
        return self.dtypes[owner]

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Read parameters that one conversion makes, on the CPU in their stored dtype.

        Raises:
            SourceError: there is no such tensor, or the conversion fails.
            InputError: the file cannot be used as it is.
        """
        owners = {name: self._owner(name) for name in names}
        missing = [name for name, owner in owners.items() if owner is None]
        if missing:
            raise SourceError(f"{self._name} has no weights for {missing[0]}; download or save it again.")
        groups = {id(self._groups[owner]): self._groups[owner] for owner in owners.values() if owner}
        assert len(groups) == 1, "the names are of one group"
        (group,) = groups.values()
        try:
            made = group.convert(self._model, self._reader.read)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise unloadable(self._name, error) from error
        return {name: made[owner] for name, owner in owners.items() if owner}

    def _owner(self, name: str) -> str | None:
        """Return the name under which ``name`` is stored: its own, or that of a parameter tied to it."""
        if name in self._groups:
            return name
        return next((other for other in self._tied.get(name, ()) if other in self._groups), None)

    def _plan(self) -> list[_Group]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        transforms = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        expected = self._model.state_dict()
        prefix = self._model.base_model_prefix
        groups: dict[str, _Group] = {}
        for name in sorted(self._reader.tensors, key=dot_natural_key):
            renamed, pattern = rename_source_key(name, renamings, converters, prefix, expected)
            if renamed not in expected and name in expected:
                renamed, pattern = rename_source_key(name, [], [], prefix, expected)
            if renamed not in expected:
                self.unexpected.append(name)
                continue
            transform = WeightRenaming(name, renamed) if pattern is None else by_pattern[pattern]
            groups.setdefault(renamed, _Group(transform, renamed)).sources.append((pattern or name, name))
        return list(groups.values())

    def _add(self, group: _Group) -> None:
        specs = self._reader.tensors

        def shape_only(name: str) -> torch.Tensor:
            return torch.empty(specs[name].shape, device="meta")

        try:
            made = group.convert(self._model, shape_only)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise unloadable(self._name, error) from error
        for target, tensor in made.items():
            wanted = self.shapes.get(target)
            if wanted != tuple(tensor.shape):
                raise SourceError(
                    f"{self._name} has {target} of shape {tuple(tensor.shape)} where its config.json says {wanted}; "
                    "the two files do not belong together, so download or save it again."
                )
            self._groups[target] = group
            self.dtypes[target] = specs[group.sources[0][1]].dtype


def _tied(model: Any) -> Mapping[str, list[str]]:
    """Return, for each parameter, those that share its weights where the checkpoint holds only one of them."""
    partners: dict[str, set[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        partners.setdefault(source, {source}).add(target)
    return {name: sorted(group - {name}) for group in partners.values() for name in group}
