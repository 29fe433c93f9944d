"""The weights of the text part of a multimodal model, under the names that it has alone."""

from collections.abc import Mapping
from pathlib import Path

import torch

from tuneserve.checkpoint import StoredCodes, TensorSpec, WeightReader, codes_of, storage_of
from tuneserve.spec import plain_name


class TextPart:
    """A view of a checkpoint without its towers."""

    def __init__(self, whole: WeightReader) -> None:
        self._whole = whole
        tensors = whole.tensors
        self._names = {plain: name for name in tensors if (plain := plain_name(name)) is not None}
        self._tensors = {plain: tensors[name] for plain, name in self._names.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the whole."""
        return self._whole.files

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """The text part's tensors."""
        return self._tensors

    def read(self, name: str) -> torch.Tensor:
        """Return one of its tensors."""
        return self._whole.read(self._names[name])

    def storage(self, name: str) -> str | None:
        """Return what one tensor's way of being stored is called; see :class:`~tuneserve.checkpoint.CodeReader`."""
        return storage_of(self._whole, self._names[name])

    def codes(self, name: str) -> StoredCodes | None:
        """Return one of its weights as it is stored."""
        return codes_of(self._whole, self._names[name])
