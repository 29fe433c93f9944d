"""A queue between two threads that is bounded by the bytes that wait in it."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ClosedError(Exception):
    """The other side has given up."""


class ByteQueue(Generic[_T]):
    """First in, first out; one item may always wait, more only while they are at most ``limit`` bytes together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[int, _T]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = False
        self._abandoned = False

    def put(self, item: _T, nbytes: int) -> None:
        """Add an item, waiting for room.

        Raises:
            ClosedError: nobody will take it any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or not self._items or self._bytes + nbytes <= self._limit)
            if self._abandoned:
                raise ClosedError
            self._items.append((nbytes, item))
            self._bytes += nbytes
            self._changed.notify_all()

    def end(self) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Say that nothing more will be taken, and drop what waits."""
        with self._changed:
            self._abandoned = self._ended = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[_T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    return
                nbytes, item = self._items.popleft()
                self._bytes -= nbytes
                self._changed.notify_all()
            yield item
            del item
