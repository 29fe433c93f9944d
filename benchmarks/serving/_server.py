"""``tuneserve serve`` as a process to be measured, and the record that each script appends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")
HOST = "127.0.0.1"
# asyncio's own pool is filled one by one, as work comes together by chance.
POOL = min(32, (os.cpu_count() or 1) + 4)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A running server: the gateway's process and its engine's."""

    process: "subprocess.Popen[str]"
    port: int

    @property
    def gateway(self) -> int:
        """The gateway's process id."""
        return self.process.pid

    @property
    def engine(self) -> int:
        """The engine's process id, which another has after a restart; 0 while there is none."""
        children = Path(f"/proc/{self.gateway}/task/{self.gateway}/children").read_text().split()
        return int(children[0]) if children else 0

    def metrics(self) -> dict[str, float]:
        """Return the gateway's metrics without labels, summed."""
        text = httpx.get(f"http://{HOST}:{self.port}/metrics", timeout=30, trust_env=False).text
        found: dict[str, float] = {}
        for name, value in re.findall(r"^([\w:]+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def ready_after(self, seconds: float) -> float:
        """Wait until ``/ready`` says 200; return how long that took.

        Raises:
            TimeoutError: it took longer than ``seconds``.
        """
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            try:
                if httpx.get(f"http://{HOST}:{self.port}/ready", timeout=30, trust_env=False).status_code == 200:
                    return time.monotonic() - began
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise
            time.sleep(0.05)
        raise TimeoutError(f"not ready after {seconds} seconds")


@contextmanager
def serving(source: str = "demo", *options: str, full_disk: bool = False) -> Iterator[Server]:
    """Serve ``source`` on a free port and end the process; its standard error can be a full disk from the start."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tuneserve", "serve", source, "--port", str(port), "--no-verify", *options]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(command, stderr=full if full_disk else subprocess.PIPE, text=True, cwd=ROOT) as process,
    ):
        try:
            server = Server(process, port)
            if process.stderr is None:
                server.ready_after(120)
            else:
                _wait_for_announcement(process.stderr)
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                finally:
                    process.kill()


def _wait_for_announcement(stderr: IO[str]) -> None:
    lines = []
    for line in stderr:
        lines.append(line)
        if line.startswith("serving "):
            # So that the pipe never fills.
            threading.Thread(target=stderr.read, daemon=True).start()
            return
    raise RuntimeError("".join(lines))


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def footprint(pid: int) -> dict[str, int]:
    """Return a process's memory in KiB, threads and open descriptors."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)}
    return {"rss_kib": found["VmRSS"], "threads": found["Threads"], "fds": len(list(Path(f"/proc/{pid}/fd").iterdir()))}


def record(script: str, **figures: Any) -> None:
    """Append one line to ``results.jsonl`` and show it."""
    line = {"script": script, **figures, "load_average": os.getloadavg()[0], **circumstances()}
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))
