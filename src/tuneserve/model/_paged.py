"""The tokens of a step over a paged cache (arXiv:2309.06180), as decoders of one call a step read them."""

from collections.abc import Sequence
from typing import Protocol

import torch


class PagedBatch(Protocol):
    """The tokens of a step; contiguous, on the decoder's device.

    Attributes:
        ids, positions, slots: int64 (tokens); a slot is block * block size + offset.
        starts: the first row of each sequence, then the number of rows, int32 (sequences + 1).
        block_tables: the blocks of each sequence in order, int32 (sequences, blocks).
        adapters: the slot of each token's adapter, -1 for the base, int32 (tokens); None if all are of the base.
    """

    @property
    def ids(self) -> torch.Tensor: ...
    @property
    def positions(self) -> torch.Tensor: ...
    @property
    def slots(self) -> torch.Tensor: ...
    @property
    def starts(self) -> torch.Tensor: ...
    @property
    def block_tables(self) -> torch.Tensor: ...
    @property
    def adapters(self) -> torch.Tensor | None: ...


class DeviceBatch(PagedBatch, Protocol):
    """What a GPU needs beside.

    Attributes:
        lengths: tokens of each sequence with these, int32 (sequences).
        counts: the rows of each sequence, on the host.
    """

    @property
    def lengths(self) -> torch.Tensor: ...
    @property
    def counts(self) -> Sequence[int]: ...
