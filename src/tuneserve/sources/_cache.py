"""Where tuneserve keeps what it downloaded or made, for this user."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_directory() -> Path:
    """Return ``$TUNESERVE_CACHE``, else ``tuneserve`` in the user's cache directory (XDG); it may not exist yet."""
    if explicit := os.environ.get("TUNESERVE_CACHE"):
        return Path(explicit).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "tuneserve"


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock named ``path`` across processes; yields its descriptor.

    A child process that inherits the descriptor holds the lock too, even after this process was killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
