"""The ``tokenizers`` library, whose failures are of any kind: it raises plain Exception, and its panics are worse."""

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class BackendError(Exception):
    """The library failed; its message in one line."""


def guarded(work: Callable[[], _T]) -> _T:
    """Return what ``work`` does with the library.

    Raises:
        BackendError: the library failed.
    """
    try:
        return work()
    # Its panics derive from BaseException.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise BackendError((str(error).partition("\n")[0][:200] or type(error).__name__).rstrip(".")) from None
