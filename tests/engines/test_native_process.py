"""Protects: the engine's process keeps the contract, says why it does not start, and never outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.sources import resolve

Make = Callable[..., Path]


def request(name: str, prompt: list[int], count: int) -> GenerationRequest:
    return GenerationRequest(id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=count, temperature=0))


async def collect(engine: NativeEngine, asked: GenerationRequest) -> list[int]:
    return [token async for chunk in engine.generate(asked) for token in chunk.token_ids]


def test_requests_run_together_cancel_and_fail_alone(make_llama: Make) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(make_llama()), dtype="float32", max_running=4)
        try:
            alone = await collect(engine, request("x", [1, 2], 9))
            together = await asyncio.gather(*(collect(engine, request(str(n), [1, 2], 9)) for n in range(6)))
            assert together == [alone] * 6
            with pytest.raises(RequestError, match="outside 0 to 255"):
                await collect(engine, request("bad", [999], 3))
            async with aclosing(engine.generate(request("long", [5], 100))) as stream:
                await anext(stream)
            while (await engine.stats()).running:
                await asyncio.sleep(0)
            assert await collect(engine, request("after", [1, 2], 9)) == alone
        finally:
            await engine.close()
        with pytest.raises(EngineError, match="stopped"):
            await collect(engine, request("late", [1], 1))

    asyncio.run(scenario())


def test_tokens_that_wait_come_together(make_llama: Make) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(make_llama()), dtype="float32")
        try:
            params = SamplingParams(max_tokens=20, temperature=0, logprobs=1, prompt_logprobs=0)
            asked = GenerationRequest(id="x", prompt_ids=[1, 2], params=params)
            eager = [chunk async for chunk in engine.generate(asked)]
            assert [len(chunk.token_ids) for chunk in eager] == [1] * 20
            async with aclosing(engine.generate(asked)) as stream:
                late = [await anext(stream)]
                while (await engine.stats()).running:
                    await asyncio.sleep(0)
                late += [chunk async for chunk in stream]
            assert len(late) == 2
            assert late[-1].finish_reason == "length"
            for chunks in (eager, late):
                assert chunks[0].prompt_logprobs
            assert [token for chunk in late for token in chunk.token_ids] == [each.token_ids[0] for each in eager]
            assert [one for chunk in late for one in chunk.logprobs or ()] == [
                (each.logprobs or [])[0] for each in eager
            ]
            assert not engine._answers
        finally:
            await engine.close()

    asyncio.run(scenario())


def test_what_keeps_it_from_starting_is_told(make_llama: Make) -> None:
    source = resolve(make_llama())
    (source.model_dir / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        asyncio.run(NativeEngine.start(source))


def test_its_death_ends_running_requests_with_an_error(make_llama: Make) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(make_llama(max_position_embeddings=4096)), dtype="float32")
        try:
            stream = engine.generate(request("x", [1], 4000))
            await anext(stream)
            engine._process.kill()
            with pytest.raises(EngineError, match="signal 9"):
                while True:
                    await anext(stream)
            assert not engine.ready
        finally:
            await engine.close()

    asyncio.run(scenario())


def test_it_leaves_when_its_parent_is_killed(make_llama: Make) -> None:
    program = (
        "import asyncio, sys\n"
        "from tuneserve.engines.native import NativeEngine\n"
        "from tuneserve.sources import resolve\n"
        "async def main():\n"
        "    engine = await NativeEngine.start(resolve(sys.argv[1]))\n"
        "    print(engine._process.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(make_llama())], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        watched = os.pidfd_open(child)
        parent.send_signal(signal.SIGKILL)
        import select

        assert select.select([watched], [], [], 60)[0], "the engine outlived its parent"
        os.close(watched)
