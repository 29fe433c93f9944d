"""A file of known size whose pieces are put in place one by one, and hashed on the way."""

import os
from pathlib import Path

from tuneserve.checkpoint._digest import new_digest

_CHUNK = 1 << 22
# As ``cp`` writes: for larger pieces the kernel caches the file in larger folios, for which it must find memory that
# lies together, and on a virtual machine that is memory which its host has yet to provide.
_PIECE = 1 << 17
# Formats align their tensors; a longer gap is a piece that is still to come.
_PADDING = 4096


class PlacedFile:
    """Opens ``path`` for writing at any offset; what is never written reads as zeros.

    Pieces that come in order are hashed as they are written, and nothing is read again. Once one comes out of order,
    the file is read back when it is closed.

    Args:
        kept: bytes from the start that an earlier run has written already.
    """

    def __init__(self, path: Path, size: int, kept: int = 0) -> None:
        self._path = path
        self._size = size
        self._hash = new_digest()
        self._hashed = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, size)
        self._absorb(kept)

    def put(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at ``offset``."""
        assert offset >= 0 and offset + data.nbytes <= self._size, f"{self._path} has no byte {offset + data.nbytes}"
        done = 0
        while done < data.nbytes:
            room = _PIECE - (offset + done) % _PIECE
            done += os.pwrite(self._file, data[done : done + room], offset + done)
        if offset < self._hashed:
            self._hash, self._hashed = new_digest(), 0
        elif offset - self._hashed <= _PADDING:
            self._absorb(offset)
        if offset == self._hashed:
            self._hash.update(data)
            self._hashed += data.nbytes

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        os.fdatasync(self._file)

    def close(self) -> str:
        """Close the file and return its hash in hexadecimal."""
        self._absorb(self._size)
        self.discard()
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Close the file, finished or not."""
        os.close(self._file)

    def _absorb(self, end: int) -> None:
        """Hash what lies on the disk up to ``end``."""
        while self._hashed < end:
            chunk = os.pread(self._file, min(_CHUNK, end - self._hashed), self._hashed)
            assert chunk, f"{self._path} became shorter while it was written"
            self._hash.update(chunk)
            self._hashed += len(chunk)
