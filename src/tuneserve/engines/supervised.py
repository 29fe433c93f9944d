"""An engine that is an HTTP server: started, watched, started again when it dies, and never left behind."""

import asyncio
import contextlib
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from tuneserve.engines import _guard
from tuneserve.engines._log import EngineLog
from tuneserve.engines._restarts import Deaths, Restarts
from tuneserve.errors import EngineError

_POLL_SECONDS = 0.1
_POLL_TIMEOUT = 5.0
_KILL_SECONDS = 10.0
_READ_BYTES = 1 << 16
_SHOWN_LINES = 12

Ready = Callable[[httpx.AsyncClient], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How one engine's server is started.

    ``command`` is given a free port on 127.0.0.1 and returns the program and its arguments. ``ready`` is a path that
    answers 200 once requests are taken, or a coroutine function that says so; its client knows the address and sends
    ``headers``. ``environment`` replaces this process's. ``start_seconds`` bounds how long loading may take,
    ``close_seconds`` how long ending may.
    """

    engine: str
    command: Callable[[int], Sequence[str | Path]]
    ready: str | Ready = "/health"
    headers: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] | None = None
    log: Path | None = None
    start_seconds: float = 1800.0
    close_seconds: float = 10.0
    restarts: Restarts = field(default_factory=Restarts)


class SupervisedServer:
    """A running server, used from one event loop."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._log = EngineLog(launch.log)
        self._address = ""
        self._trouble: str | None = "is being started"
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, launch: Launch) -> Self:
        """Start it and wait until it takes requests.

        Raises:
            EngineError: it ended, or was not ready in time; the message has its last lines.
            OutputError: the log cannot be written.
        """
        server = cls(launch)
        server._log.open()
        try:
            await server._start_once()
        except EngineError as error:
            lines = server._log.last_lines[-_SHOWN_LINES:]
            await server.close()
            shown = "\n  ".join(["; its last lines:", *lines]) if lines else " and said nothing."
            raise EngineError(f"{launch.engine} {error}{shown}") from None
        except BaseException:
            await server.close()
            raise
        server._watcher = asyncio.create_task(server._watch())
        return server

    @property
    def ready(self) -> bool:
        """Whether it takes requests now."""
        return self._trouble is None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of its output."""
        return self._log.last_lines

    def address(self) -> str:
        """Return its URL, which is another after it was started again.

        Raises:
            EngineError: it takes no requests now.
        """
        if self._trouble is not None:
            raise EngineError(f"{self._launch.engine} {self._trouble}{self._where()}.")
        return self._address

    async def close(self) -> None:
        """Ask it to end, kill what is left after ``close_seconds``, and wait until nothing of it is left."""
        self._trouble = "was stopped; start it again"
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        await self._end()
        self._log.close()

    async def _start_once(self) -> None:
        """Start the process and wait until it is ready; on an error nothing of it is left."""
        port = _free_port()
        self._address = f"http://127.0.0.1:{port}"
        command = [str(part) for part in self._launch.command(port)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", _guard.__file__, str(self._launch.close_seconds), *command,
            stdin=PIPE, stdout=PIPE, stderr=STDOUT, env=self._launch.environment, start_new_session=True,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self._process))
        ended = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._until_ready())
        try:
            seconds = self._launch.start_seconds
            await asyncio.wait((ended, ready), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await self._reader
                raise EngineError(f"{_ending(ended.result())} while it started")
            if not ready.done():
                raise EngineError(f"was not ready after {seconds:g} seconds")
            await ready
        except BaseException:
            await self._end()
            raise
        finally:
            for task in (ended, ready):
                task.cancel()
        self._trouble = None

    async def _until_ready(self) -> None:
        check = self._launch.ready
        async with httpx.AsyncClient(
            base_url=self._address, headers=dict(self._launch.headers), timeout=_POLL_TIMEOUT, trust_env=False
        ) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if isinstance(check, str):
                        if (await client.get(check)).status_code == httpx.codes.OK:
                            return
                    elif await check(client):
                        return
                await asyncio.sleep(_POLL_SECONDS)

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(_READ_BYTES):
            self._log.write(data)

    async def _watch(self) -> None:
        """Start the engine again whenever it has died."""
        deaths = Deaths(self._launch.restarts)
        while True:
            assert self._process is not None
            how = _ending(await self._process.wait())
            while True:
                await self._end()
                delay = deaths.note()
                if delay is None:
                    self._trouble = f"{how}, {deaths.count} times in a row, and is not started again"
                    return
                self._trouble = f"{how} and is being started again"
                self._log.write(f"\n{self._launch.engine} {how}; starting it again in {delay:g} s\n".encode())
                await asyncio.sleep(delay)
                try:
                    await self._start_once()
                    break
                except (EngineError, OSError) as error:
                    how = str(error)

    async def _end(self) -> None:
        """End the process, if there is one, and wait until nothing of it is left."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), self._launch.close_seconds + _KILL_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader

    def _where(self) -> str:
        return f"; see {self._log.path}" if self._log.path is not None else ""


def _ending(code: int) -> str:
    signal_number = code - _guard.SIGNALLED
    return f"was ended by signal {signal_number}" if 0 < signal_number < 65 else f"ended with exit code {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
