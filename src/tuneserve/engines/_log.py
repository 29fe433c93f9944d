"""What an engine says: its last lines in memory, all of it in a file that is rotated."""

import re
from collections import deque
from pathlib import Path
from typing import BinaryIO

from tuneserve.errors import OutputError

_LINES = 40
_LINE_BYTES = 500
_FILE_BYTES = 16 * 2**20
# What terminals take as colours and cursor movements (ECMA-48, section 5.4).
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class EngineLog:
    """Takes bytes as they come; at most ``2 * file_bytes`` are kept on disk, in ``path`` and ``path`` + ``.1``."""

    def __init__(self, path: Path | None, file_bytes: int = _FILE_BYTES) -> None:
        self._path = path
        self._limit = file_bytes
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._rest = b""
        self._file: BinaryIO | None = None
        self._size = 0

    @property
    def path(self) -> Path | None:
        """The file, None where there is none."""
        return self._path

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines that say something, without colours."""
        cleaned = (_CONTROL.sub("", line).rstrip() for line in (*self._lines, _text(self._rest)))
        return tuple(line for line in cleaned if line)

    def open(self) -> None:
        """Go on in the file.

        Raises:
            OutputError: it cannot be written.
        """
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            self._size = self._file.tell()
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written ({error.strerror}); choose another directory.") from None

    def write(self, data: bytes) -> None:
        """Keep what an engine said."""
        *lines, rest = re.split(rb"\r\n|\n|\r", self._rest + data)
        self._lines.extend(map(_text, lines))
        self._rest = rest[-_LINE_BYTES:]
        if self._file is not None:
            self._append(self._file, data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, file: BinaryIO, data: bytes) -> None:
        assert self._path is not None
        try:
            if self._size and self._size + len(data) > self._limit:
                file.close()
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self.open()
            assert self._file is not None
            self._file.write(data)
            self._size += len(data)
        except (OSError, OutputError):
            # A full disk must not end what is being served.
            self.close()


def _text(line: bytes) -> str:
    return line[:_LINE_BYTES].decode("utf-8", errors="replace")
