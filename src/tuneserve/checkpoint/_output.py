"""Output directories that appear complete or not at all."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneserve.errors import OutputError

_LOCK = ".lock"
# Letters of the target in the temporary name, which in UTF-8 stays below the 255 bytes that a name may have.
_NAMED = 50
_FULL = (errno.ENOSPC, errno.EDQUOT)


class AtomicDirectory:
    """A context that fills a temporary sibling of ``target`` and renames it into place when the block succeeds.

    On any exception, Ctrl-C included, the temporary directory is removed. One left behind by a killed process is
    recognised by its free lock: the next run with the same target goes on in it if ``resume`` is set, else removes it.

    Raises:
        OutputError: ``target`` exists, its parent cannot be written, or the disk is full.
    """

    def __init__(self, target: Path, *, resume: bool = False) -> None:
        self.target = target
        self.path = target
        self._resume = resume

    def __enter__(self) -> Self:
        self.target = self.target.absolute()
        check_absent(self.target)
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            leftover = self._take_leftover()
            if leftover is None:
                self._make()
            else:
                self.path, self._lock = leftover
        except OSError as error:
            raise _output_error(self.target, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._publish()
            elif isinstance(error, OSError) and error.errno in _FULL:
                raise error
        except OSError as failure:
            raise _output_error(self.target, failure) from failure
        finally:
            os.close(self._lock)
            if self.path != self.target:
                shutil.rmtree(self.path, ignore_errors=True)

    def _publish(self) -> None:
        for directory, _, files in os.walk(self.path):
            for name in files:
                _sync(Path(directory) / name)
            _sync(Path(directory))
        (self.path / _LOCK).unlink()
        self.path.rename(self.target)
        self.path = self.target
        _sync(self.target.parent)

    def _make(self) -> None:
        prefix = f".{self.target.name[:_NAMED]}.partial-"
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=self.target.parent))
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # mkdtemp makes it private; the artifact gets the permissions any new directory would.
        umask = os.umask(0)
        os.umask(umask)
        self.path.chmod(0o777 & ~umask)

    def _take_leftover(self) -> tuple[Path, int] | None:
        """Remove what killed runs left behind; to resume, return the newest of it and its lock instead."""
        taken = None
        leftovers = self.target.parent.glob(f".{_escape(self.target.name[:_NAMED])}.partial-*")
        for leftover in sorted(leftovers, key=lambda path: path.lstat().st_mtime, reverse=True):
            try:
                lock = os.open(leftover / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            if self._resume and taken is None:
                taken = leftover, lock
            else:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)
        return taken


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_absent(target: Path) -> None:
    """Check, before long work, that an output could be there later.

    Raises:
        OutputError: there is something already, or cannot be anything of that name.
    """
    try:
        target.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _output_error(target, error) from None
    except ValueError:
        raise OutputError(f"{str(target)!r} has a NUL character in it; choose another output directory.") from None
    raise OutputError(f"{target} exists already; choose another output directory or remove it first.")


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(target: Path, error: OSError) -> OutputError:
    if error.errno in _FULL:
        return OutputError(f"the disk of {target} is full; free some space or choose an output on another disk.")
    return OutputError(f"{target} cannot be written ({error.strerror}); choose another output directory.")
