"""An engine replica: one actor with one engine behind it."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec

from tuneserve.deploy.ray._options import RayOptions
from tuneserve.deploy.ray._sources import resolve_all
from tuneserve.engines.contract import Engine, EngineInfo, EngineStats, GenerationRequest, TokenChunk
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.engines.probes import verify_engine
from tuneserve.engines.registry import find_engine
from tuneserve.errors import EngineError, InputError, RequestError

_logger = logging.getLogger("tuneserve.deploy")
_STATS_SECONDS = 10.0
_EXIT_CODE = 3


class Accepted(msgspec.Struct, frozen=True):
    """The replica has taken the request."""


class Refused(msgspec.Struct, frozen=True):
    """A request that can never be served."""

    message: str
    param: str | None


class Failed(msgspec.Struct, frozen=True):
    """A sequence that the engine could not continue; the replica goes on."""

    message: str


Message = Accepted | TokenChunk | Refused | Failed


class Replica:
    """The actor. When its engine dies it leaves too, so that losing either is one thing, which Ray notices at once.

    Raises:
        InputError: the source cannot be served as it is, or is not on this machine.
        EngineError: the engine did not start, or not in time; the message names the log.
        ParityError: what it serves is not the model that was trained.
    """

    async def __init__(self, options: RayOptions) -> None:  # type: ignore[misc] # Serve awaits it
        try:
            async with asyncio.timeout(options.start_seconds):
                self._engine = await start_engine(options)
        except TimeoutError:
            raise EngineError(
                f"the {options.engine} engine was not ready after {options.start_seconds:g} seconds on "
                f"{socket.gethostname()}; see {log_path()} there, or raise start_seconds."
            ) from None

    async def generate(self, request: GenerationRequest, key: bytes | None) -> AsyncGenerator[Message, None]:  # noqa: ARG002
        """Continue one sequence; ``key`` is what it was routed by."""
        yield Accepted()
        try:
            async with aclosing(self._engine.generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except RequestError as error:
            yield Refused(str(error), error.param)
        except EngineError as error:
            if not self._engine.ready:
                _leave(str(error))
            yield Failed(str(error))

    async def info(self) -> EngineInfo:
        """Return what is being served."""
        return self._engine.info

    async def stats(self) -> EngineStats:
        """Return the load right now."""
        return await self._engine.stats()

    async def check_health(self) -> None:
        """Answer Serve, which replaces a replica that does not.

        Raises:
            EngineError: the engine is gone, or does not answer.
        """
        try:
            async with asyncio.timeout(_STATS_SECONDS):
                await self._engine.stats()
        except TimeoutError:
            raise EngineError(f"the engine does not answer; see {log_path()}.") from None


async def start_engine(options: RayOptions) -> Engine:
    """Start the engine that ``options`` describe, and compare it and each of its adapters with their sources.

    Raises:
        TuneserveError: it cannot be served, did not start, or is another model.
    """
    source, sources = await asyncio.to_thread(resolve_all, options)
    adapters = [NamedAdapter(name, each.adapter_dir) for name, each in sources.items() if each.adapter_dir]
    kind = find_engine(options.engine)
    serve = ServeOptions(
        context_length=options.context,
        max_running=options.max_running,
        dtype=options.dtype,
        tensor_parallel=options.tensor_parallel,
        logs=Path(log_path()).parent / f"tuneserve-{os.getpid()}",
    )
    preflight = await asyncio.to_thread(kind.check, source, adapters, serve)
    if preflight.problems:
        export = f"; export it with --method {preflight.export} and serve that" if preflight.export else ""
        raise InputError(f"{kind.name} cannot serve {source.name}: {'; '.join(preflight.problems)}{export}.")
    engine = await kind.start(source, adapters, serve, options.name or source.name)
    try:
        if options.verify and "logprobs" not in engine.info.lacks:
            for name, each, method in [(None, source, None), *((name, each, "lora") for name, each in sources.items())]:
                verdict = await verify_engine(engine, each, method, name)
                _logger.info("%s is the model that was trained: KL %.1e nats", name or source.name, verdict.mean_kl)
    except BaseException:
        await engine.close()
        raise
    return engine


def log_path() -> str:
    """Return the file that this process writes what it says to."""
    try:
        return str(Path("/proc/self/fd/2").readlink())
    except OSError:
        return "the log of the replica's worker"


def _leave(why: str) -> None:
    _logger.error("the replica leaves, for its engine is lost: %s", why)
    logging.shutdown()
    os._exit(_EXIT_CODE)
