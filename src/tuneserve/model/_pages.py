"""Memory for what the compiled step reads in order: one tensor after the other, in pages of 2 MB where these exist."""

import mmap
from contextlib import suppress
from math import prod

import torch

# What is not touched of a block takes no memory.
_BLOCK, _PAGE, _LINE = 32 << 20, 2 << 20, 64
_HUGE = hasattr(mmap, "MADV_HUGEPAGE")


class Pages:
    """Gives out memory; each tensor keeps the block that it is in.

    A processor fetches ahead only within a page, and looks up the address of every page that it comes to: of 4 kB each,
    a step meets tens of thousands.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, size: int) -> torch.Tensor:
        """Return uint8 (size), aligned to cache lines, behind what was given out last where it fits there.

        Raises:
            OSError: there is not so much memory.
        """
        if self._used + size > len(self._block):
            self._block, self._used = _block(max(_BLOCK, -(-size // _PAGE) * _PAGE)), 0
        given = self._block[self._used : self._used + size]
        self._used += -(-size // _LINE) * _LINE
        return given

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor like this one, contiguous.

        Raises:
            OSError: there is not so much memory.
        """
        given = self.empty(prod(tensor.shape) * tensor.element_size()).view(tensor.dtype).view(tensor.shape)
        return given.copy_(tensor)


def _block(size: int) -> torch.Tensor:
    if not _HUGE:
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel may be built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
