"""Where tuneserve keeps what it downloaded or made, for this user."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneserve.errors import SourceError


def cache_directory() -> Path:
    """Return ``$TUNESERVE_CACHE``, else ``tuneserve`` in the user's cache directory (XDG); it may not exist yet.

    Raises:
        SourceError: the user has no home directory.
    """
    explicit = os.environ.get("TUNESERVE_CACHE")
    named = Path(explicit or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        directory = named.expanduser().absolute()
    except RuntimeError:
        raise SourceError(f"{named} is in no known home directory; set TUNESERVE_CACHE to a directory.") from None
    return directory if explicit else directory / "tuneserve"


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock named ``path`` across processes; yields its descriptor.

    A child process that inherits the descriptor holds the lock too, even after this process was killed.

    Raises:
        SourceError: there is no writing there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise SourceError(
            f"the cache {path.parent} cannot be written ({error.strerror}); set TUNESERVE_CACHE to another directory."
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
