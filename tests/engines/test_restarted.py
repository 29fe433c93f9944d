"""Protects: a native engine that dies is started again; what was running ends with an error."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.engines._restarted import RestartedEngine
from tuneserve.engines._restarts import Restarts
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import EngineError
from tuneserve.sources import resolve

Make = Callable[..., Path]
SOON = Restarts(first_delay=0.01, attempts=1)


def asked(tokens: int) -> GenerationRequest:
    return GenerationRequest(id=str(tokens), prompt_ids=[5], params=SamplingParams(max_tokens=tokens, temperature=0))


async def collect(engine: RestartedEngine, tokens: int) -> int:
    return sum([len(chunk.token_ids) async for chunk in engine.generate(asked(tokens))])


def kill(engine: RestartedEngine) -> None:
    os.kill(engine._engine._process.pid, signal.SIGKILL)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def test_it_is_started_again_and_then_stays_down(make_llama: Make) -> None:
    source = resolve(make_llama(max_position_embeddings=4096))

    async def scenario() -> None:
        engine = await RestartedEngine.start(lambda: NativeEngine.start(source, dtype="float32"), SOON)
        try:
            assert await collect(engine, 3) == 3
            running = engine.generate(asked(4000))
            await anext(running)
            kill(engine)
            with pytest.raises(EngineError, match="was ended by signal 9"):
                async for _ in running:
                    pass
            await until(lambda: engine.ready)
            assert await collect(engine, 3) == 3
            kill(engine)
            await until(lambda: engine._watcher.done())
            assert not engine.ready
            with pytest.raises(EngineError, match="2 times in a row, and is not started again"):
                await collect(engine, 3)
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_closing_while_it_is_down_starts_nothing(make_llama: Make) -> None:
    source, starts = resolve(make_llama()), 0

    async def start() -> NativeEngine:
        nonlocal starts
        starts += 1
        return await NativeEngine.start(source, dtype="float32")

    async def scenario() -> None:
        engine = await RestartedEngine.start(start, Restarts(first_delay=60))
        kill(engine)
        await until(lambda: not engine.ready)
        await engine.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert starts == 1
