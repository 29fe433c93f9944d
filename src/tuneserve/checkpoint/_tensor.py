"""What a tensor is on disk, and what reads tensors one at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, dtype (safetensors' name for it, "BF16") and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class TensorHeader(TensorSpec):
    """Where one tensor lies: ``offset`` is absolute in ``path``."""

    path: Path
    offset: int


class WeightReader(Protocol):
    """A model's weights under the names of its Hugging Face checkpoint, whatever they are stored or made from."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """What :meth:`read` returns for each name, in the order in which reading is cheapest."""

    def read(self, name: str) -> "torch.Tensor":
        """Read one tensor into memory of its own, on the CPU.

        Raises:
            InputError: what it is made from cannot be used as it is.
        """


@runtime_checkable
class RowReader(WeightReader, Protocol):
    """A reader that need not read all of a tensor for some of its rows."""

    def read_rows(self, name: str, start: int, stop: int) -> "torch.Tensor":
        """Read ``[start:stop]`` of the rows of one tensor, all dimensions but its last taken as one.

        Returns:
            shape ``[stop - start, size of the last dimension]``; errors as in :meth:`read`.
        """
