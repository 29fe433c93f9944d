"""Runs an engine so that nothing of it outlives whoever started it: ``python -I -S _guard.py SECONDS COMMAND...``.

Standard input is a pipe that its starter holds open. When that closes, because the starter wants the engine gone or is
itself gone, the engine is asked to end, and killed after SECONDS. This process is the reaper of all that descends from
it (prctl(2), ``PR_SET_CHILD_SUBREAPER``), so that it also finds workers that detached themselves. It ends with the
engine's exit code, 128 and the number for a signal. Only the standard library, so that it starts at once and under any
interpreter.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NOT_STARTED = 127
SIGNALLED = 128


def descendants() -> set[int]:
    """Return the ids of all processes below this one, zombies among them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        # The second field is the program's name in parentheses, and may contain anything.
        with contextlib.suppress(OSError, ValueError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        below = [pid for pid in children.get(pending.pop(), []) if pid not in found]
        found.update(below)
        pending += below
    return found


def reap(engine: int) -> int | None:
    """Take leave of all that has ended; return the wait status of ``engine`` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended_as = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == engine:
                status = ended_as
    return status


def kill_all(engine: int) -> int | None:
    """Kill every descendant until there is none; return the wait status of ``engine`` if it was among them."""
    status = reap(engine)
    while below := descendants():
        for pid in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        ended_as = reap(engine)
        status = ended_as if ended_as is not None else status
        time.sleep(0.005)
    return status


def guard(engine: int, grace: float) -> int:
    """Wait until the engine ends or is to end; return its wait status once nothing of it is left."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    watched = [0, woken]
    deadline: float | None = None
    status = reap(engine)
    while status is None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        readable, _, _ = select.select(watched, [], [], left)
        if woken in readable:
            os.read(woken, 4096)
            status = reap(engine)
        if 0 in readable and not os.read(0, 4096):
            watched.remove(0)
            deadline = time.monotonic() + grace
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(engine, signal.SIGTERM)
    last = kill_all(engine)
    status = last if status is None else status
    return 0 if status is None else status


def main() -> None:
    """Run the command line's program under guard and end as it did."""
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_guard() -> None:
        # Should the guard itself be killed, the engine at least does not stay.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    if sys.platform == "linux":
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        # Caught, not ignored: what is ignored stays so in the engine.
        signal.signal(number, lambda *_: None)
    try:
        engine = subprocess.Popen(  # noqa: S603
            sys.argv[2:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_guard if sys.platform == "linux" else None,
        )
    except OSError as error:
        sys.stderr.write(f"{sys.argv[2]} cannot be started ({error.strerror})\n")
        sys.exit(_NOT_STARTED)
    code = os.waitstatus_to_exitcode(guard(engine.pid, float(sys.argv[1])))
    # As a shell tells of a signal.
    os._exit(code if code >= 0 else SIGNALLED - code)


if __name__ == "__main__":
    main()
