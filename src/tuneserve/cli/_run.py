"""What every verb shares: how errors leave the program, and where text goes."""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOBase, TextIOWrapper
from pathlib import Path
from typing import IO, cast

from rich.console import Console

from tuneserve.errors import InputError, TuneserveError


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
        # Asked before streams that are closed have been replaced.
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stderr.encoding


class _Output(Console):
    def on_broken_pipe(self) -> None:
        # Called while the error is handled; Rich would leave with the code of a check that failed.
        raise


# Explanations and progress go to stderr; stdout carries only what was asked for.
console = Console(file=cast(IO[str], _Explanations()), highlight=False)
output = _Output(highlight=False)

# What shells give a program that a signal has ended, here SIGINT and SIGPIPE.
_INTERRUPTED, _READER_LEFT = 130, 141


def run(program: Callable[[], None]) -> None:
    """Run ``program`` and leave the process with the exit code of whatever it raises."""
    # So that what is half done is also cleaned up when the process is asked to end.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    _open_streams()
    try:
        try:
            program()
        finally:
            # At exit Python could only complain.
            sys.stdout.flush()
    except TuneserveError as error:
        _leave(str(error), error.exit_code)
    except (KeyboardInterrupt, SystemExit) as left:
        # Typer turns a reader that has left into the code of a check that failed.
        if isinstance(left.__context__, BrokenPipeError):
            _give_stdout_up()
            sys.exit(_READER_LEFT)
        # And Ctrl-C into this one, without a word.
        if isinstance(left, SystemExit) and left.code != _INTERRUPTED:
            raise
        _leave("interrupted; nothing was left half-written.", _INTERRUPTED)
    except BrokenPipeError:
        _give_stdout_up()
        sys.exit(_READER_LEFT)
    except MemoryError:
        _leave("this machine ran out of memory; close other programs or use a larger one.", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the path and its permissions"
        _give_stdout_up()
        _leave(f"{where}{error.strerror or error}; {remedy}.", 2)


def _open_streams() -> None:
    """Put nothing in the place of streams that are closed, and let stdout take every character in some way."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _give_stdout_up() -> None:
    """Drop what could not be written to stdout, which Python would try once more at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    escaped = not sys.stdout.encoding.lower().startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=escaped) + "\n")


def read_text(read: Callable[[], str]) -> str:
    """Return what ``read`` reads from stdin.

    Raises:
        InputError: it is not text in the encoding of the terminal, which is UTF-8 nearly everywhere.
    """
    try:
        return read()
    except UnicodeDecodeError:
        raise InputError(f"what came from stdin is not {sys.stdin.encoding} text; convert it.") from None


def _leave(message: str, code: int) -> None:
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, soft_wrap=True)
    sys.exit(code)
