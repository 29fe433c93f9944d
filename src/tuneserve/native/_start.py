"""What a process of the native engine says when it cannot load its part of the model."""

from collections.abc import Callable
from typing import TypeVar

from tuneserve.engines._native_wire import NotStarted
from tuneserve.errors import TuneserveError

Loaded = TypeVar("Loaded")
# What runs out, and what a library says of a file or a device.
FAILURES = (MemoryError, RuntimeError, OSError)


def load_or_say(load: Callable[[], Loaded], who: str) -> Loaded | NotStarted:
    """Return what ``load`` gives, or why ``who`` could not."""
    try:
        return load()
    except TuneserveError as error:
        return NotStarted(str(error), is_input=True)
    except FAILURES as error:
        return NotStarted(f"{who} ({first_line(error)}); see the lines above.", is_input=False)


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
