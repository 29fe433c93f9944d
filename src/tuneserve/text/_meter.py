"""What one rendering of a chat template may cost: time, and the memory of everything it makes.

Time is bounded twice. Work is charged before it is done, in units of one element or 256 characters, so that no single
operation runs long; and the clock of the thread is looked at every thousand units.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Set, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from time import thread_time
from typing import Any, NoReturn, TypeVar

from jinja2.exceptions import SecurityError

_MAX_SECONDS = 3.0
_MAX_WORK = 10_000_000
_MAX_BYTES = 1 << 29
_MAX_LENGTH = 4_000_000
_MAX_BITS = 4096
_OBJECT_BYTES = 1024
_ELEMENT_BYTES = 80
_UNITS_BETWEEN_LOOKS = 1000
# A trial takes about a millisecond at most.
_TRIAL_WORK = 2000
_TRIAL_BYTES = 1 << 22

_T = TypeVar("_T")


class UnfinishedError(Exception):
    """A trial is over before the rendering was; what it may cost in all is not known."""


class _Meter:
    def __init__(self, is_trial: bool) -> None:
        self.is_trial = is_trial
        self.work = self.look = _TRIAL_WORK if is_trial else _MAX_WORK
        self.bytes = _TRIAL_BYTES if is_trial else _MAX_BYTES
        self.deadline = thread_time() + _MAX_SECONDS

    def refuse(self, reason: str) -> NoReturn:
        raise UnfinishedError if self.is_trial else SecurityError(reason)


_current: ContextVar[_Meter] = ContextVar("meter")


@contextmanager
def metered(is_trial: bool = False) -> Iterator[None]:
    """Begin one rendering, within which the other functions count; a trial raises UnfinishedError where it is long."""
    token = _current.set(_Meter(is_trial))
    try:
        yield
    finally:
        _current.reset(token)


def work(units: int = 1) -> None:
    """Charge for work that is about to be done; refuse where too much is left or the time is over."""
    meter = _current.get()
    meter.work -= units
    if meter.work < meter.look:
        if meter.work < 0 or thread_time() > meter.deadline:
            meter.refuse("it takes too long")
        meter.look = meter.work - _UNITS_BETWEEN_LOOKS


def occupy(size: int) -> None:
    """Charge for ``size`` bytes of memory."""
    meter = _current.get()
    meter.bytes -= size
    if meter.bytes < 0:
        meter.refuse("it takes too much memory")


def made(value: _T) -> _T:
    """Charge for the memory of a value that was just made, and return it."""
    if isinstance(value, str):
        fits(len(value))
        occupy(sys.getsizeof(value))
    elif isinstance(value, list | tuple | dict):
        fits(len(value))
        occupy(sys.getsizeof(value) + _ELEMENT_BYTES * len(value))
    elif isinstance(value, int):
        fits_number(value.bit_length())
    else:
        occupy(_OBJECT_BYTES)
    return value


def fits(length: int) -> int:
    """Refuse a text or list of more than four million characters or elements; return its length."""
    if length > _MAX_LENGTH:
        raise SecurityError("it makes too long a text or list")
    return length


def fits_number(bits: int) -> None:
    """Refuse an integer of more than 4096 bits."""
    if bits > _MAX_BITS:
        raise SecurityError("it makes too large a number")


def measure(value: Any) -> tuple[int, int]:
    """Charge for a walk through ``value`` and all that is in it; return its elements and about its characters."""
    elements = characters = 0
    stack = [value]
    while stack:
        item = stack.pop()
        length = len(item) if isinstance(item, str | range | list | tuple | Mapping | Set | ValuesView) else 4
        work(1 + (length >> 8 if isinstance(item, str) else length))
        elements += 1
        characters += 8
        if isinstance(item, str):
            characters += length
        elif isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple | Set | ValuesView):
            stack.extend(item)
    return elements, characters


def text_of(value: Any) -> str:
    """Return ``str(value)``, refused before it is made where it is too long."""
    if not isinstance(value, str):
        fits(measure(value)[1])
    return made(str(value))


def counted(items: Iterable[_T]) -> Iterator[_T]:
    """Yield ``items``, charging for each."""
    occupy(_OBJECT_BYTES)
    for item in items:
        work()
        yield item
