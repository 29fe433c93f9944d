"""Hashing files while their tensors are read, a little ahead of them so that each byte leaves the disk once."""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneserve.checkpoint import new_digest
from tuneserve.errors import CheckpointError

_CHUNK = 1 << 22
# What the page cache can be trusted to still hold when the tensors' turn comes.
_LEAD_BYTES = 1 << 30


class InputDigest:
    """Hashes ``files`` on a thread of its own, never more than a lead ahead of what :meth:`advance` was told."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._sizes = [path.stat().st_size for path in files]
        self._allowed = threading.Condition()
        self._share = 0.0
        self._error: OSError | None = None
        self._hashes: dict[Path, str] = {}
        self._thread = threading.Thread(target=self._run, name="input-digest", daemon=True)

    def advance(self, share: float) -> None:
        """Say what share of the tensors has been read, from 0 to 1."""
        with self._allowed:
            self._share = share
            self._allowed.notify()

    def result(self) -> dict[Path, str]:
        """Wait for the end and return the hash of each file.

        Raises:
            CheckpointError: a file could not be read to its end.
        """
        self.advance(float("inf"))
        self._thread.join()
        if self._error is not None:
            raise CheckpointError(f"{self._error.filename} cannot be read ({self._error.strerror}); check the disk.")
        return self._hashes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._files = ()
            self.advance(float("inf"))

    def _run(self) -> None:
        total, done = sum(self._sizes), 0
        buffer = bytearray(_CHUNK)
        try:
            for path in self._files:
                digest = new_digest()
                with path.open("rb", buffering=0) as file:
                    while count := file.readinto(buffer):
                        digest.update(memoryview(buffer)[:count])
                        done += count
                        self._wait(done, total)
                        if not self._files:
                            return
                self._hashes[path] = digest.hexdigest()
        except OSError as error:
            self._error = error

    def _wait(self, done: int, total: int) -> None:
        with self._allowed:
            self._allowed.wait_for(lambda: done <= self._share * total + _LEAD_BYTES)
