"""A Ray of its own, small and on loopback alone, that runs a Serve configuration; and how tests use one.

``python -m tests.deploy.ray.local_cluster FILE STATUS`` is the program; an interrupt ends it and all that it started.
Twice a second it writes into ``STATUS`` what ``serve status`` would show. Before, it builds each application whose
arguments are in ``refused.json`` beside ``FILE``, and writes beside it what came of that.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tuneserve.errors import TuneserveError

CPUS = 8
OBJECT_STORE_BYTES = 80 << 20
READY_SECONDS = 150.0
END_SECONDS = 60.0
POLL_SECONDS = 0.1
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback
    "OMP_NUM_THREADS": "1",
}

_REFUSALS = "refusals.json"
# Ray's processes of this name sometimes do not notice that the cluster is gone (AGENT_PROCESS_LIST in its constants).
RAY_AGENTS = frozenset({"ray::DashboardAgent", "ray::RuntimeEnvAgent"})


class LocalCluster:
    """The running program; ``directory`` has a short name, for Ray's sockets are below it."""

    def __init__(self, config: Path, directory: Path) -> None:
        self._status = directory / "status.json"
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploy.ray.local_cluster", str(config), str(self._status)],
            stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path.cwd())])},
        )  # fmt: skip

    def refusals(self) -> dict[str, str]:
        """Return what was said of the applications that were not to be built."""
        answers: dict[str, str] = json.loads(self._status.with_name(_REFUSALS).read_text())
        return answers

    def wait(self, condition: Callable[[dict[str, Any]], object], seconds: float = READY_SECONDS) -> dict[str, Any]:
        """Wait until the applications' status meets a condition, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            status = json.loads(self._status.read_text()) if self._status.exists() else {}
            if condition(status):
                return dict(status)
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, f"{json.dumps(status, indent=1)}\n{self.log}"
            time.sleep(POLL_SECONDS)

    @property
    def log(self) -> str:
        """What the program has said."""
        return Path(self._log.name).read_text(errors="replace")[-8000:]

    def processes(self, command: str, below: str = "") -> list[int]:
        """Return its descendants whose command line has ``command`` in it, ``below`` processes of another if named."""
        roots = self.processes(below) if below else [self._process.pid]
        return [each.pid for root in roots for each in _descendants(root) if command in each.command]

    def end(self) -> list[str]:
        """End it as Ctrl-C does; return the commands of what was left behind, other than :data:`RAY_AGENTS`.

        All that it started and left is killed.
        """
        started = [*_look(self._process.pid), *_descendants(self._process.pid)]
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(END_SECONDS)
            deadline = time.monotonic() + END_SECONDS
            while any(each.lives for each in started if each.command not in RAY_AGENTS) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        finally:
            left = [each for each in started if each.lives]
            for each in left:
                os.kill(each.pid, signal.SIGKILL)
            self._process.wait()
            self._log.close()
        return [each.command for each in left if each.command not in RAY_AGENTS]


class Process(NamedTuple):
    """One process: its number, which another may get later, when it was started, in clock ticks, and its command."""

    pid: int
    started: int
    command: str

    @property
    def lives(self) -> bool:
        """Whether this very process is still there, and more than its parent's memory of it."""
        state, started = _stat(self.pid)
        return started == self.started and state != "Z"


def _look(pid: int) -> list[Process]:
    """Return the process if it is there."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return []
    return [Process(pid, _stat(pid)[1], command)]


def _stat(pid: int) -> tuple[str, int]:
    """Return state and start of a process (proc_pid_stat(5)); of one that is not there, no state."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", -1
    return fields[0], int(fields[19])


def _descendants(pid: int) -> list[Process]:
    found: list[Process] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            found += [*_look(child), *_descendants(child)]
    return found


def _write_status(path: Path) -> None:
    from ray import serve

    while True:
        time.sleep(0.5)
        applications = {
            name: {
                "status": application.status,
                "message": "\n".join([application.message, *(d.message for d in application.deployments.values())]),
                "engines": application.deployments["engine"].replica_states.get("RUNNING", 0)
                if "engine" in application.deployments
                else 0,
            }
            for name, application in serve.status().applications.items()
        }
        new = path.with_suffix(".new")
        new.write_text(json.dumps(applications))
        new.rename(path)


def _refuse(arguments: Path, answers: Path) -> None:
    from tuneserve.deploy.ray import app

    said = {}
    for name, args in json.loads(arguments.read_text()).items():
        try:
            app(args)
            said[name] = "built"
        except TuneserveError as error:
            said[name] = str(error)
    answers.write_text(json.dumps(said))


def main() -> None:
    import ray
    from ray.serve.scripts import cli

    config, status = map(Path, sys.argv[1:])
    ray.init(
        address="local", namespace="serve", num_cpus=CPUS, object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False, log_to_driver=False, _temp_dir=str(status.parent),
    )  # fmt: skip
    _refuse(config.with_name("refused.json"), status.with_name(_REFUSALS))
    threading.Thread(target=_write_status, args=(status,), daemon=True).start()
    cli.main(["run", str(config)])


if __name__ == "__main__":
    main()
