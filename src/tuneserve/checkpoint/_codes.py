"""Weights as the codes and scales that a checkpoint stores, for engines that compute with these."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from tuneserve.checkpoint._tensor import WeightReader

if TYPE_CHECKING:
    import torch

CodeKind = Literal["int8", "int4", "nf4", "fp8"]


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """A matrix as ``value(code) * scale + minimum``; nothing was rounded, but products of scales to float32.

    Attributes:
        kind: ``int8`` (the value is code - 128), ``int4`` (codes 0 to 15), ``nf4`` (codes of bitsandbytes' table) or
            ``fp8`` (bits of e4m3, none of them NaN).
        codes: uint8 (rows, columns), one code a byte.
        scales: float32 (rows, columns / group), finite; a group is 32 columns, or 16 of int8.
        minima: float32, of the same shape; int4 alone has them.
    """

    kind: CodeKind
    codes: "torch.Tensor"
    scales: "torch.Tensor"
    minima: "torch.Tensor | None" = None

    @property
    def group(self) -> int:
        """How many columns share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])


@runtime_checkable
class CodeReader(WeightReader, Protocol):
    """A reader of weights of which some are stored in few bits."""

    def codes(self, name: str) -> StoredCodes | None:
        """Read one weight as it is stored; None where it is stored in no way that :class:`StoredCodes` can say.

        Raises:
            InputError: as of :meth:`read`.
        """


def by_groups(grid: "torch.Tensor", shape: tuple[int, int], block: tuple[int, int]) -> "torch.Tensor | None":
    """Return scales of blocks (rows, columns) of a weight of ``shape`` as scales of each 32 columns of each row.

    None where groups of 32 do not divide the weight or a block.
    """
    import torch

    rows, columns = shape
    if columns % 32 or (block[1] % 32 and block[1] < columns):
        return None
    by_row = torch.arange(rows) // block[0]
    by_column = torch.arange(0, columns, 32) // block[1]
    return grid.float()[by_row][:, by_column].contiguous()
