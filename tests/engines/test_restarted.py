"""Protects: a native engine that dies is started again; what was running ends with an error."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.engines._native_kind import Native
from tuneserve.engines._restarted import RestartedEngine
from tuneserve.engines._restarts import Restarts
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import EngineError, InputError
from tuneserve.sources import resolve

Make = Callable[..., Path]
SOON = Restarts(first_delay=0.01, attempts=1)


def asked(tokens: int, adapter: str | None = None) -> GenerationRequest:
    params = SamplingParams(max_tokens=tokens, temperature=0)
    return GenerationRequest(id=str(tokens), prompt_ids=[5], params=params, adapter=adapter)


async def collect(engine: RestartedEngine, tokens: int, adapter: str | None = None) -> int:
    return sum([len(chunk.token_ids) async for chunk in engine.generate(asked(tokens, adapter))])


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


def test_adapters_come_back_and_those_that_were_dropped_or_are_gone_do_not(
    make_llama: Make, make_lora: Make, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_llama()
    directories = {name: make_lora(base, name) for name in ("kept", "dropped", "gone")}

    async def scenario() -> None:
        engine = await RestartedEngine.start(lambda: NativeEngine.start(resolve(base), dtype="float32"), SOON)
        try:
            for name, directory in directories.items():
                await engine.load_adapter(name, directory)
            await engine.unload_adapter("dropped")
            with pytest.raises(InputError, match="no adapter is called 'dropped'"):
                await engine.unload_adapter("dropped")
            (directories["gone"] / "adapter_config.json").unlink()
            kill(engine)
            await until(lambda: not engine.ready)
            await until(lambda: engine.ready)
            assert engine.info.adapters == ("kept",)
            assert await collect(engine, 3, "kept") == 3
            assert len(await engine.embed([5], "mean", "kept")) == 64
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert "the adapter gone is not there after the restart" in caplog.text


def test_the_kind_starts_it_with_its_adapters_or_says_why_not(make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    source, options = resolve(base), ServeOptions(dtype="float32")
    good = NamedAdapter("good", make_lora(base, "good"))
    trained = NamedAdapter("trained", make_lora(base, "trained", use_dora=True))
    foreign = NamedAdapter("foreign", make_lora(make_llama("other", hidden_size=32), "foreign"))
    assert Native().check(source, [good], options).problems == ()
    problems = Native().check(source, [good, trained, foreign], options).problems
    assert [problem.partition(" (")[0] for problem in problems] == [
        "the adapter trained cannot be served",
        "the adapter foreign cannot be served",
    ]
    assert "has DoRA" in problems[0] and "32" in problems[1]

    async def scenario() -> None:
        engine = await Native().start(source, [good], options, "base")
        try:
            assert engine.info.adapters == ("good",)
        finally:
            await engine.close()
        with pytest.raises(InputError, match="has DoRA"):
            await Native().start(source, [good, trained], options, "base")

    asyncio.run(asyncio.wait_for(scenario(), 120))
