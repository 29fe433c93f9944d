"""A child process that works for a while: its lines are handed on, and it never outlives what started it."""

import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import EngineError

_KEPT_LINES = 200
_LINE_CHARACTERS = 4096


@dataclass(frozen=True)
class ChildResult:
    """The exit code (negative: the signal that ended it) and the last lines of both its streams."""

    code: int
    lines: tuple[str, ...]

    @property
    def reason(self) -> str:
        """The last line that says something, or how it ended."""
        said = next((line for line in reversed(self.lines) if line.strip()), "").strip().rstrip(".")[:300]
        if self.code < 0:
            return f"it {how_it_ended(self.code)}" + (f" after {said!r}" if said else "")
        return said or f"it {how_it_ended(self.code)} and said nothing"


def how_it_ended(code: int) -> str:
    """Return what became of a process with this exit code (negative: the signal that ended it), as a predicate."""
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def run_child(
    command: Sequence[str | Path],
    report: Callable[[str], None],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    inherited: Sequence[int] = (),
) -> ChildResult:
    """Run ``command`` to its end in a process group of its own, which is killed on any exception here.

    Its standard input is a pipe that closes when this process is gone, however that comes about; a command that can
    outlive it should watch that.

    Args:
        command: the program and its arguments.
        report: is given each line; a line that a progress bar overwrites counts as one.
        environment: replaces this process's.
        directory: where it runs.
        inherited: descriptors that it gets.

    Raises:
        EngineError: the program cannot be started.
    """
    try:
        process = subprocess.Popen(  # noqa: S603
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace", env=environment, cwd=directory, pass_fds=inherited,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be started ({error.strerror}); name another program.") from None
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            while line := process.stdout.readline(_LINE_CHARACTERS):
                lines.append(line.rstrip("\n"))
                report(lines[-1])
            process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return ChildResult(process.returncode, tuple(lines))
