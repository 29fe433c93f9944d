"""Protects: the engine's process keeps the contract, says why it does not start, and never outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import AdapterHost, Embedder, GenerationRequest, Pooling, SamplingParams
from tuneserve.engines.kind import NativeOptions
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

Make = Callable[..., Path]


def request(name: str, prompt: list[int], count: int, adapter: str | None = None) -> GenerationRequest:
    params = SamplingParams(max_tokens=count, temperature=0)
    return GenerationRequest(id=name, prompt_ids=prompt, params=params, adapter=adapter)


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


def test_its_own_options_reach_the_process(make_llama: Make) -> None:
    async def weight_bytes(**options: Any) -> int:
        source = resolve(make_llama(head_dim=32, intermediate_size=128, hidden_size=128))
        engine = await NativeEngine.start(source, native=NativeOptions(**options))
        try:
            assert len(await collect(engine, request("x", [1, 2], 9))) == 9
            return engine.info.weight_bytes
        finally:
            await engine.close()

    async def scenario() -> None:
        small = await weight_bytes(weights="int4", cache_tokens=512, prefix_cache=False, speculation=3)
        assert small < 0.75 * await weight_bytes()
        with pytest.raises(InputError, match="one sequence of the context"):
            await weight_bytes(cache_tokens=64)
        with pytest.raises(InputError, match="int8 weights need the compiled step"):
            await weight_bytes(cpu_step="eager", weights="int8")

    asyncio.run(scenario())


def test_tokens_that_wait_come_together(make_llama: Make) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(make_llama()), dtype="float32")
        try:
            params = SamplingParams(max_tokens=20, temperature=0, logprobs=1, prompt_logprobs=0)
            asked = GenerationRequest(id="x", prompt_ids=[1, 2], params=params)
            eager = [chunk async for chunk in engine.generate(asked)]
            assert sum(len(chunk.token_ids) for chunk in eager) == 20
            async with aclosing(engine.generate(asked)) as stream:
                late = [await anext(stream)]
                while (await engine.stats()).running:
                    await asyncio.sleep(0)
                late += [chunk async for chunk in stream]
            assert len(late) == 2
            assert late[-1].finish_reason == "length"
            for chunks in (eager, late):
                assert chunks[0].prompt_logprobs
            assert [token for chunk in late for token in chunk.token_ids] == [
                token for each in eager for token in each.token_ids
            ]
            assert [one for chunk in late for one in chunk.logprobs or ()] == [
                one for each in eager for one in each.logprobs or ()
            ]
            assert not engine._answers
        finally:
            await engine.close()

    asyncio.run(scenario())


def test_what_was_found_in_the_cache_comes_with_the_first_tokens(make_llama: Make) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(make_llama()), dtype="float32")
        try:
            prompt = list(range(5, 45))
            for expected in (0, 32, 32):
                asked = request("x", prompt, 3)
                chunks = [chunk async for chunk in engine.generate(asked)]
                assert [chunk.cached_tokens for chunk in chunks] == [expected, *[None] * (len(chunks) - 1)]
            # Two of the same that come together compute it once.
            twins = await asyncio.gather(*(anext(engine.generate(request(name, [9] * 40, 1))) for name in "ab"))
            assert sorted(chunk.cached_tokens or 0 for chunk in twins) == [0, 32]
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


def test_adapters_come_and_go_beside_running_streams(make_llama: Make, make_lora: Make) -> None:
    base = make_llama(dtype=torch.float32, max_position_embeddings=4096)

    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(base), dtype="float32")
        assert isinstance(engine, AdapterHost)
        try:
            plain = await collect(engine, request("plain", [1, 2], 9))
            async with aclosing(engine.generate(request("long", [5], 4000))) as stream:
                await anext(stream)
                await asyncio.gather(
                    engine.load_adapter("a", make_lora(base, "a", seed=1, scale=0.3)),
                    engine.load_adapter("b", make_lora(base, "b", seed=2, scale=0.3)),
                )
                assert sorted(engine.info.adapters) == ["a", "b"]
                named = [request(str(index), [1, 2], 9, name) for index, name in enumerate((None, "a", "b"))]
                found = await asyncio.gather(*(collect(engine, asked) for asked in named))
                assert found[0] == plain and len({tuple(tokens) for tokens in found}) == 3
                using = engine.generate(request("using", [1, 2], 900, "a"))
                await anext(using)
                unloading = asyncio.create_task(engine.unload_adapter("a"))
                await asyncio.sleep(0)  # it is asked
                with pytest.raises(InputError, match="no adapter is called 'a'"):
                    await engine.unload_adapter("a")
                assert not unloading.done()
                assert sum([len(chunk.token_ids) async for chunk in using]) == 899
                await unloading
                assert engine.info.adapters == ("b",)
                with pytest.raises(RequestError, match="'a' is not being served"):
                    await collect(engine, request("late", [1, 2], 9, "a"))
                with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
                    await engine.load_adapter("c", base)
                await anext(stream)
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_embeddings_are_the_hidden_states_pooled(make_llama: Make, make_lora: Make) -> None:
    base = make_llama(dtype=torch.float32)
    adapter, prompt = make_lora(base, scale=0.3), [7, 3, 99, 4]

    def expected(pooling: Pooling, name: str | None) -> list[float]:
        core = NativeCore(EngineConfig(model_dir=str(base), dtype="float32"))
        core.load_adapter("a", adapter)
        params = SamplingParams(max_tokens=1, temperature=0)
        core.add(GenerationRequest(id="x", prompt_ids=prompt, params=params, adapter=name), pooling)
        (output,) = core.step()
        assert output.pooled is not None
        return output.pooled

    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(base), dtype="float32")
        assert isinstance(engine, Embedder)
        try:
            await engine.load_adapter("a", adapter)
            wanted: list[tuple[Pooling, str | None]] = [("mean", None), ("last", None), ("mean", "a")]
            found = await asyncio.gather(*(engine.embed(prompt, pooling, name) for pooling, name in wanted))
            assert found == [expected(*each) for each in wanted]
            assert len({tuple(vector) for vector in found}) == 3
            for bad, match in (([], "no tokens"), ([999], "outside 0 to 255")):
                with pytest.raises(RequestError, match=match):
                    await engine.embed(bad, "mean", None)
            with pytest.raises(RequestError, match="'b' is not being served"):
                await engine.embed(prompt, "mean", "b")
        finally:
            await engine.close()
        with pytest.raises(EngineError, match="stopped"):
            await engine.embed(prompt, "mean", None)

    asyncio.run(asyncio.wait_for(scenario(), 120))
