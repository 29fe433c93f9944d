"""Running the gateway: claim the port, load the model, serve, and leave without breaking anyone's answer."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import TypeVar

import uvicorn

from tuneserve.gateway._app import application
from tuneserve.gateway._connection import MAX_HEAD_BYTES, Connection
from tuneserve.gateway._listen import Tls, allow_many_connections, host_names, is_loopback, listen, shown
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._state import Gateway, Settings

# Longer than the 60 seconds of most load balancers, so that it is they who close an idle connection.
_KEEP_ALIVE_SECONDS = 75
_CLOSING_SECONDS = 5
_T = TypeVar("_T")
_logger = logging.getLogger("tuneserve.gateway")


def serve(
    build: Callable[[], Awaitable[Sequence[ServedModel]]],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None],
    settings: Settings | None = None,
    drain_seconds: float = 30.0,
    allowed_hosts: tuple[str, ...] = (),
    tls: Tls | None = None,
) -> None:
    """Claim the port, load the models with ``build``, and serve them until SIGTERM or SIGINT.

    While ``build`` runs, and while the server drains, requests are answered with 503; ``on_ready`` gets the URL once
    they are taken. The first signal lets running requests finish for up to ``drain_seconds``, a second one ends them.
    Then the engines are closed. Port 0 takes a free one. On a loopback address, only requests for a loopback name,
    ``host`` or one of ``allowed_hosts`` are answered. SIGHUP has the file of API keys read again.

    Raises:
        InputError: the address, the keys or the certificate cannot be used; nothing was loaded.
        TuneserveError: whatever ``build`` raises.
    """
    with listen(host, port) as listener:
        address, actual_port = listener.getsockname()[:2]
        names = host_names(address, host, allowed_hosts)
        gateway = Gateway(replace(settings or Settings(), allowed_hosts=names))
        if gateway.callers is None and not is_loopback(address):
            _logger.warning("whoever reaches %s port %d may use it; give it --api-key-file.", address, actual_port)
        url = f"{'http' if tls is None else 'https'}://{shown(address, host)}:{actual_port}"
        allow_many_connections()
        asyncio.run(_run(listener, build, gateway, lambda: on_ready(url), drain_seconds, tls))


async def _run(
    listener: socket.socket,
    build: Callable[[], Awaitable[Sequence[ServedModel]]],
    gateway: Gateway,
    on_ready: Callable[[], None],
    drain_seconds: float,
    tls: Tls | None,
) -> None:
    server = _Server(gateway, tls)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    serving.add_done_callback(lambda _: server.stop())
    callers = gateway.callers
    if callers is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, callers.reload)
    try:
        served = await _unless(server.stopping, build())
        if served is not None:
            await _serve_until_stopped(server, gateway, served, on_ready, drain_seconds)
    finally:
        server.should_exit = True
        await serving
        if gateway.tracer is not None:
            await asyncio.to_thread(gateway.tracer.close)


async def _serve_until_stopped(
    server: "_Server",
    gateway: Gateway,
    served: Sequence[ServedModel],
    on_ready: Callable[[], None],
    drain_seconds: float,
) -> None:
    try:
        gateway.open(*served)
        on_ready()
        await server.stopping.wait()
        gateway.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_unless(server.hurrying, gateway.idle()), drain_seconds)
    finally:
        gateway.drain()
        # Ends what is still running with an error, which its clients are told.
        await asyncio.gather(*(each.engine.close() for each in served))


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

    def __init__(self, gateway: Gateway, tls: Tls | None) -> None:
        config = uvicorn.Config(
            application(gateway),
            http=Connection,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
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
