"""The contract of an output format: which files it writes, and which bytes of them come from which weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Piece:
    """``nbytes`` bytes at ``offset`` of the planned file ``file``."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PlannedFile:
    """A file whose size is known before it is written; ``header`` is what stands before its first piece.

    Bytes between pieces are zeros.
    """

    header: bytes
    size: int


class Format(Protocol):
    """One method's artifact, planned: nothing is written before :meth:`write_side_files`.

    Made from what a merged model's tensors are called and shaped like, never from their data.
    """

    @property
    def files(self) -> Mapping[str, PlannedFile]:
        """The weight files by name."""

    @property
    def observed(self) -> tuple[str, ...]:
        """The weights to show to :meth:`observe` before any is encoded."""
        return ()

    def observe(self, name: str, tensor: "torch.Tensor") -> None:  # noqa: ARG002
        """Take from a weight what must be known of it to encode others."""
        raise AssertionError(f"{name} is not among the observed weights")

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """Return where the bytes made from the weight ``name`` go; none if the format has no use for it."""

    def copies(self, name: str) -> bool:
        """Return whether the weight's own bytes are its only piece, or it has none; it is then not encoded."""
        return not self.pieces(name)

    def encode(self, name: str, tensor: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Return the bytes of each of :meth:`pieces`, in order, as contiguous tensors of whatever dtype."""

    def write_side_files(self, directory: Path) -> None:
        """Write what else belongs to the artifact (configuration, tokenizer, template) into ``directory``."""

    def candidate(self, directory: Path) -> Path | None:
        """Return what of the artifact in ``directory`` is to be compared with the reference; None if nothing can be."""
