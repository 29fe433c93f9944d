"""What every verb shares: how errors leave the program, and where text goes."""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOBase
from typing import IO, cast

from rich.console import Console

from tuneserve.errors import TuneserveError


class _Explanations(TextIOBase):
    """Standard error as it is now; what it cannot take, because the disk is full or its reader left, is not missed."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stderr.encoding


# Explanations and progress go to stderr; stdout carries only what was asked for.
console = Console(file=cast(IO[str], _Explanations()), highlight=False)
output = Console(highlight=False)

_INTERRUPTED = 130


def run(program: Callable[[], None]) -> None:
    """Run ``program`` and leave the process with the exit code of whatever it raises."""
    # So that what is half done is also cleaned up when the process is asked to end.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        program()
    except TuneserveError as error:
        _leave(str(error), error.exit_code)
    except (KeyboardInterrupt, SystemExit) as left:
        # Typer turns Ctrl-C into this code without a word.
        if isinstance(left, SystemExit) and left.code != _INTERRUPTED:
            raise
        _leave("interrupted; nothing was left half-written.", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has left; closing stdout now keeps Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError:
        _leave("this machine ran out of memory; close other programs or use a larger one.", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the path and its permissions"
        _leave(f"{where}{error.strerror or error}; {remedy}.", 2)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), style="dim", markup=False, soft_wrap=True)


def log_to_console() -> None:
    """Print what the engine in this process says of how it was loaded."""
    logger = logging.getLogger("tuneserve.native")
    logger.setLevel(logging.INFO)
    logger.addHandler(_ConsoleHandler())


def print_json(value: object) -> None:
    """Print ``value`` to stdout as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _leave(message: str, code: int) -> None:
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, soft_wrap=True)
    sys.exit(code)
