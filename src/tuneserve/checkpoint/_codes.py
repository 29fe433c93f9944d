"""Weights as the codes and scales that a checkpoint stores, for engines that compute with these."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from tuneserve.checkpoint._tensor import WeightReader
from tuneserve.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# What the codes of bitsandbytes' NF4 stand for: Dettmers et al., QLoRA, https://arxiv.org/abs/2305.14314, appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
CodeKind = Literal["int8", "int4", "nf4", "fp4", "e2m1", "fp8"]


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """A matrix as ``value(code) * scale + minimum``; nothing was rounded, but products of scales to float32.

    Attributes:
        kind: integers of 8 or 4 bits; ``nf4`` and ``fp4`` (tables of bitsandbytes), ``e2m1`` (OCP Microscaling Formats
            1.0); ``fp8`` (bits of e4m3, none of them NaN).
        codes: uint8 (rows, columns), one code a byte; the value of ``int8`` without minima is code - 128.
        scales: float32 (rows, columns / group), finite; a group is 32 columns, or 16 of ``int8`` without minima.
        minima: float32, of the same shape; ``int4`` always has them, ``int8`` may.
        outer_scales, outer_minima: where scales are nested, float32 (rows, columns / 256), exact in float16; scales and
            minima are then integers of 8 signed bits to be multiplied with these.
    """

    kind: CodeKind
    codes: "torch.Tensor"
    scales: "torch.Tensor"
    minima: "torch.Tensor | None" = None
    outer_scales: "torch.Tensor | None" = None
    outer_minima: "torch.Tensor | None" = None

    @property
    def group(self) -> int:
        """How many columns share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def reordered(self, rows: "torch.Tensor") -> "StoredCodes":
        """Return the same with its rows in another order: which one stands at each place, int64 (rows)."""
        others = (self.minima, self.outer_scales, self.outer_minima)
        minima, outer_scales, outer_minima = (None if one is None else one[rows] for one in others)
        return StoredCodes(self.kind, self.codes[rows], self.scales[rows], minima, outer_scales, outer_minima)

    def factors(self) -> "tuple[torch.Tensor, ...]":
        """Return scales, minima and outer ones, those that there are."""
        found = (self.scales, self.minima, self.outer_scales, self.outer_minima)
        return tuple(factor for factor in found if factor is not None)


@runtime_checkable
class CodeReader(WeightReader, Protocol):
    """A reader of weights of which some are stored in few bits."""

    def storage(self, name: str) -> str | None:
        """Return what one tensor's way of being stored is called, None where that is in full."""

    def codes(self, name: str) -> StoredCodes | None:
        """Read one weight as it is stored; None where it is stored in no way that :class:`StoredCodes` can say.

        Raises:
            CheckpointError: a scale is not finite.
            InputError: as of :meth:`read`.
        """


def storage_of(reader: WeightReader, name: str) -> str | None:
    """Return what one tensor's way of being stored is called, None where that is in full, as of any other reader."""
    return reader.storage(name) if isinstance(reader, CodeReader) else None


def codes_of(reader: WeightReader, name: str) -> StoredCodes | None:
    """Read one weight as it is stored; raises as :meth:`CodeReader.codes`, and is None of any other reader."""
    return reader.codes(name) if isinstance(reader, CodeReader) else None


def checked(name: str, found: StoredCodes | None) -> StoredCodes | None:
    """Return the codes of the weight ``name``.

    Raises:
        CheckpointError: a scale is not finite.
    """
    if found is not None and not all(factor.isfinite().all() for factor in found.factors()):
        raise CheckpointError(f"{name} has scales that are not finite; download the model again.")
    return found


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
