"""The arithmetic of adapters: what is done to a weight, in float32, a block of rows at a time.

A block is part of the weight along its first dimension. Edits are made from names and shapes, and read the adapter when
they are carried out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tuneserve.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

Blocks = Callable[[], Iterator[tuple[int, "torch.Tensor"]]]
"""Yields the float32 blocks of a weight in order, each with the index of its first row.

A block may be changed, and is good until the next is asked for."""


class Edit(Protocol):
    """One change of a weight."""

    def apply(self, blocks: Blocks) -> Blocks:
        """Return the blocks of the changed weight; those of ``blocks`` may be changed in place."""


@dataclass(frozen=True)
class Factors:
    """A low-rank matrix B @ A read from an adapter: A (rank, in) and B (out, rank).

    ``transposed`` says that the weight is stored as (in, out), as embeddings and GPT-2's layers are.
    """

    checkpoint: Checkpoint
    a: str
    b: str
    transposed: bool = False

    def load(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return float32 (rows, rank) and (rank, columns), whose product is added to the weight's rows and columns."""
        a, b = self.checkpoint.read(self.a).float(), self.checkpoint.read(self.b).float()
        a, b = a.flatten(1), b.flatten(1)
        return (a.T, b.T) if self.transposed else (b, a)


class LowRank(Protocol):
    """Whatever loads as two float32 factors (rows, rank) and (rank, columns)."""

    def load(self) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return the factors."""


@dataclass(frozen=True)
class AddLowRank:
    """LoRA (arXiv:2106.09685): W + scaling * B @ A."""

    factors: LowRank
    scaling: float

    def apply(self, blocks: Blocks) -> Blocks:
        """See :class:`Edit`."""
        left, right = self.factors.load()

        def added() -> Iterator[tuple[int, "torch.Tensor"]]:
            for start, block in blocks():
                block.flatten(1).addmm_(left[start : start + len(block)], right, alpha=self.scaling)
                yield start, block

        return added


@dataclass(frozen=True)
class Dora:
    """DoRA (arXiv:2402.09353): m * V / ||V|| with V = W + scaling * B @ A, the norm per output feature.

    The outputs are the rows of a weight stored as (out, in) and the columns of one stored as (in, out).
    """

    added: AddLowRank
    checkpoint: Checkpoint
    magnitude: str
    transposed: bool = False

    def apply(self, blocks: Blocks) -> Blocks:
        """See :class:`Edit`."""
        directions = self.added.apply(blocks)
        magnitude = self.checkpoint.read(self.magnitude).float().flatten()
        if self.transposed:
            squares = sum(block.square().sum(0) for _, block in directions())
            scale = magnitude / squares.sqrt()  # type: ignore[union-attr]

        def scaled() -> Iterator[tuple[int, "torch.Tensor"]]:
            for start, block in directions():
                if self.transposed:
                    yield start, block.mul_(scale)
                else:
                    norm = block.flatten(1).norm(dim=1)
                    block.flatten(1).mul_((magnitude[start : start + len(block)] / norm)[:, None])
                    yield start, block

        return scaled


@dataclass(frozen=True)
class AddVector:
    """A bias of its own in B: b + scaling * b'."""

    checkpoint: Checkpoint
    name: str
    scaling: float

    def apply(self, blocks: Blocks) -> Blocks:
        """See :class:`Edit`."""
        vector = self.checkpoint.read(self.name).float()

        def added() -> Iterator[tuple[int, "torch.Tensor"]]:
            for start, block in blocks():
                yield start, block.add_(vector[start : start + len(block)], alpha=self.scaling)

        return added


@dataclass(frozen=True)
class ReplaceRows:
    """Token embeddings trained by themselves: the rows ``indices`` become those of the tensor ``name``, in order."""

    checkpoint: Checkpoint
    name: str
    indices: tuple[int, ...]

    def apply(self, blocks: Blocks) -> Blocks:
        """See :class:`Edit`."""
        rows = self.checkpoint.read(self.name).float()
        places = dict(zip(self.indices, range(len(rows)), strict=True))

        def replaced() -> Iterator[tuple[int, "torch.Tensor"]]:
            for start, block in blocks():
                for index, place in places.items():
                    if start <= index < start + len(block):
                        block[index - start] = rows[place]
                yield start, block

        return replaced
