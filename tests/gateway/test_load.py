"""Protects: many streams through the real engine stay apart, leave nothing behind, and are told when it dies.

Smaller versions of what ``benchmarks/serving`` measures.
"""

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.gateway.conftest import write_tokenizer
from tuneserve.engines._restarted import RestartedEngine
from tuneserve.engines._restarts import Restarts
from tuneserve.engines.contract import EngineStats
from tuneserve.engines.native import NativeEngine
from tuneserve.gateway import ServedModel, create_app, listen
from tuneserve.gateway._connection import Connection
from tuneserve.sources import resolve
from tuneserve.text import open_chat_template, open_tokenizer

STREAMS = 40
WAIT = 60
# Python's own for asyncio.to_thread, this one, and httpx's.
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4) + 2
Make = Callable[..., Path]


@dataclass
class Running:
    """A server in this event loop, in front of a native engine in a process of its own."""

    engine: RestartedEngine
    client: httpx.AsyncClient

    async def stream(self, number: int, tokens: int = 16) -> tuple[str, str | None]:
        """Return the text of a stream and how it ended: its finish reason, or the code of its error."""
        text, end = "", None
        async for event in self.events(number, tokens):
            if "error" in event:
                return text, event["error"]["code"]
            for choice in event["choices"]:
                text += choice["text"]
                end = choice["finish_reason"] or end
        return text, end

    async def events(self, number: int, tokens: int) -> AsyncIterator[dict[str, Any]]:
        body = {"model": "m", "prompt": f"{number} ducks", "max_tokens": tokens, "temperature": 0, "stream": True}
        async with self.client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line and line != "data: [DONE]":
                    yield json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Running]:
    async def start() -> NativeEngine:
        return await NativeEngine.start(resolve(directory), dtype="float32", max_running=8)

    engine = await RestartedEngine.start(start, Restarts(first_delay=0.01))
    served = ServedModel("m", open_tokenizer(directory), open_chat_template(directory), engine)
    config = uvicorn.Config(create_app(served), http=Connection, lifespan="off", log_config=None, log_level="error")
    server = uvicorn.Server(config)
    server.capture_signals = lambda: threading.Lock()  # type: ignore[assignment, method-assign, return-value] # the test's own
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        try:
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=WAIT, trust_env=False) as client:
                yield Running(engine, client)
        finally:
            await engine.close()
            server.should_exit = True
            await serving


@pytest.fixture
def directory(make_llama: Make) -> Path:
    directory = make_llama(vocab_size=258, max_position_embeddings=4096)
    config = (directory / "config.json").read_text()
    write_tokenizer(directory)
    (directory / "config.json").write_text(config)
    return directory


def within(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * WAIT):
            await work

    asyncio.run(bounded())


def test_streams_are_neither_lost_nor_mixed_up(directory: Path) -> None:
    async def scenario() -> None:
        async with running(directory) as server:
            alone = [await server.stream(number) for number in range(STREAMS)]
            assert len({text for text, _ in alone}) > STREAMS // 2, "the texts do not tell the streams apart"
            together = await asyncio.gather(*(server.stream(number) for number in range(STREAMS)))
            assert together == alone

    within(scenario())


def test_cancelled_streams_leave_nothing_behind(directory: Path) -> None:
    async def leave(server: Running, number: int) -> None:
        seen = 0
        async for _ in server.events(number, 2000):
            seen += 1
            if seen == number % 4 + 1:
                break

    def kept() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    def more_than(before: tuple[int, int]) -> bool:
        return any(now > then for now, then in zip(kept(), before, strict=True))

    def is_busy(stats: EngineStats) -> bool:
        return bool(stats.running or stats.waiting or stats.cache_usage)

    async def scenario() -> None:
        async with running(directory) as server:
            before = kept()
            for _ in range(4):
                await asyncio.gather(*(leave(server, number) for number in range(STREAMS)))
                while is_busy(await server.engine.stats()) or more_than(before):
                    await asyncio.sleep(0.01)
            assert not server.engine._engine._answers
            assert threading.active_count() <= POOL_THREADS
            assert (await server.stream(1))[1] == "length"

    within(scenario())


def test_when_the_engine_is_killed_every_stream_is_told_and_the_next_request_works(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(directory) as server:
            expected = await server.stream(1)
            streams = [asyncio.create_task(server.stream(number, 4000)) for number in range(8)]
            while (await server.engine.stats()).running < len(streams):
                await asyncio.sleep(0)
            os.kill(server.engine._engine._process.pid, signal.SIGKILL)
            assert {end for _, end in await asyncio.gather(*streams)} == {"engine_error"}
            while (await server.client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            assert await server.stream(1) == expected
            metrics = (await server.client.get("/metrics")).text
            assert 'tuneserve_engine_ready{model_name="m"} 1.0' in metrics

    within(scenario())
