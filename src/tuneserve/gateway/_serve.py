"""Running the gateway: claim the port, load the model, serve, and leave without breaking anyone's answer."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TypeVar

import uvicorn

from tuneserve.gateway._app import application
from tuneserve.gateway._listen import host_names, listen, shown
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._state import Gateway, Settings

# Longer than the 60 seconds of most load balancers, so that it is they who close an idle connection.
_KEEP_ALIVE_SECONDS = 75
_CLOSING_SECONDS = 5
_T = TypeVar("_T")


def serve(
    build: Callable[[], Awaitable[ServedModel]],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None],
    drain_seconds: float = 30.0,
    max_body_bytes: int = Settings.max_body_bytes,
    allowed_hosts: tuple[str, ...] = (),
) -> None:
    """Claim the port, load the model with ``build``, and serve it until SIGTERM or SIGINT.

    While ``build`` runs, and while the server drains, requests are answered with 503; ``on_ready`` gets the URL once
    they are taken. The first signal lets running requests finish for up to ``drain_seconds``, a second one ends them.
    Then the engine is closed. Port 0 takes a free one. On a loopback address, only requests for a loopback name,
    ``host`` or one of ``allowed_hosts`` are answered.

    Raises:
        InputError: the address cannot be used; nothing was loaded.
        TuneserveError: whatever ``build`` raises.
    """
    with listen(host, port) as listener:
        address, actual_port = listener.getsockname()[:2]
        settings = Settings(max_body_bytes, host_names(address, host, allowed_hosts))
        url = f"http://{shown(address, host)}:{actual_port}"
        asyncio.run(_run(listener, build, Gateway(settings), lambda: on_ready(url), drain_seconds))


async def _run(
    listener: socket.socket,
    build: Callable[[], Awaitable[ServedModel]],
    gateway: Gateway,
    on_ready: Callable[[], None],
    drain_seconds: float,
) -> None:
    server = _Server(gateway)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    serving.add_done_callback(lambda _: server.stop())
    try:
        served = await _unless(server.stopping, build())
        if served is not None:
            await _serve_until_stopped(server, gateway, served, on_ready, drain_seconds)
    finally:
        server.should_exit = True
        await serving


async def _serve_until_stopped(
    server: "_Server", gateway: Gateway, served: ServedModel, on_ready: Callable[[], None], drain_seconds: float
) -> None:
    try:
        gateway.open(served)
        on_ready()
        await server.stopping.wait()
        gateway.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_unless(server.hurrying, gateway.idle()), drain_seconds)
    finally:
        gateway.drain()
        # Ends what is still running with an error, which its clients are told.
        await served.engine.close()


async def _unless(event: asyncio.Event, work: Awaitable[_T]) -> _T | None:
    """Return what ``work`` does, or None when ``event`` is set first, which cancels it."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        task.cancel()
        await asyncio.wait({task, waiter})
    return None if task.cancelled() else task.result()


class _Server(uvicorn.Server):
    """Uvicorn, told when to exit by us rather than by the signals themselves."""

    def __init__(self, gateway: Gateway) -> None:
        config = uvicorn.Config(
            application(gateway),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error",  # its warnings are about what strangers send
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        super().__init__(config)
        self.stopping = asyncio.Event()
        self.hurrying = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take a signal: the first stops the server, the second does not wait for running requests."""
        self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Stop; said twice, at once."""
        (self.hurrying if self.stopping.is_set() else self.stopping).set()
