"""The native engine under supervision: started again when it dies."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Self

from tuneserve.engines._restarts import Deaths, Restarts
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, Pooling, TokenChunk
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import EngineError, InputError

_logger = logging.getLogger("tuneserve.engines")
Start = Callable[[], Awaitable[NativeEngine]]


class RestartedEngine:
    """A native engine that ``start`` starts; see :class:`~tuneserve.engines.contract.Engine`.

    When it dies, its sequences end with an error, and new ones get one until it is there again, with its adapters.
    """

    def __init__(self, start: Start, engine: NativeEngine, restarts: Restarts) -> None:
        self._start = start
        self._engine = engine
        self._deaths = Deaths(restarts)
        self._trouble: str | None = None
        self._adapters: dict[str, Path] = {}
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, start: Start, restarts: Restarts | None = None) -> Self:
        """Start it for the first time.

        Raises:
            InputError: the model cannot be loaded as it is.
            EngineError: it did not start.
        """
        return cls(start, await start(), restarts or Restarts())

    @property
    def info(self) -> EngineInfo:
        """What is being served."""
        return self._engine.info

    @property
    def ready(self) -> bool:
        """Whether it takes requests now."""
        return self._trouble is None and self._engine.ready

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence; see the contract."""
        async with aclosing(self._running().generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def stats(self) -> EngineStats:
        """Return the load right now."""
        return await self._running().stats()

    async def embed(self, prompt_ids: list[int], pooling: Pooling, adapter: str | None) -> list[float]:
        """Return the pooled hidden states of a prompt; see the contract."""
        return await self._running().embed(prompt_ids, pooling, adapter)

    async def load_adapter(self, name: str, path: Path) -> None:
        """Serve an adapter from now on, also after a restart; see the contract."""
        await self._running().load_adapter(name, path)
        self._adapters[name] = path.absolute()

    async def unload_adapter(self, name: str) -> None:
        """Drop an adapter; see the contract."""
        engine = self._running()
        if name in engine.info.adapters:
            # First, so that it does not come back if the engine dies while its sequences end.
            self._adapters.pop(name, None)
        await engine.unload_adapter(name)

    async def close(self) -> None:
        """Stop it and wait until it is gone."""
        self._watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watcher
        await self._engine.close()

    def _running(self) -> NativeEngine:
        if self._trouble is not None:
            raise EngineError(f"{self._trouble}.")
        return self._engine

    async def _watch(self) -> None:
        while True:
            how = await self._engine.ended()
            await self._engine.close()
            while True:
                delay = self._deaths.note()
                if delay is None:
                    self._trouble = f"{how}, {self._deaths.count} times in a row, and is not started again"
                    return
                self._trouble = f"{how} and is being started again; send the request again later"
                await asyncio.sleep(delay)
                try:
                    self._engine = await self._start()
                    await self._bring_back()
                    break
                except (EngineError, InputError, OSError) as error:
                    how = str(error).rstrip(".")
            self._trouble = None

    async def _bring_back(self) -> None:
        """Load the adapters again; one that is gone by now is missed, and the others are served."""
        for name, path in list(self._adapters.items()):
            try:
                await self._engine.load_adapter(name, path)
            except InputError as error:
                del self._adapters[name]
                _logger.error("the adapter %s is not there after the restart: %s", name, error)
