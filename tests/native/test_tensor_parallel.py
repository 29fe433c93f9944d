"""Protects: an engine divided over processes gives the same tokens, says what it cannot divide, and ends as a whole."""

import asyncio
import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import EngineError, InputError
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import ResolvedSource, resolve

Make = Callable[..., Path]
Answer = tuple[list[int], list[float]]
# Sums over processes are in another order.
TOLERANCE = 1e-4


async def answer(engine: NativeEngine, number: int) -> Answer:
    params = SamplingParams(
        max_tokens=10, temperature=float(number % 2), seed=number, logprobs=0, prompt_logprobs=0 if number < 2 else None
    )
    tokens: list[int] = []
    logprobs: list[float] = []
    async for chunk in engine.generate(GenerationRequest(id=str(number), prompt_ids=[7, 8 + number, 3], params=params)):
        tokens += chunk.token_ids
        logprobs += [one.logprob for one in (chunk.prompt_logprobs or []) + (chunk.logprobs or [])]
    return tokens, logprobs


async def answers(source: ResolvedSource, size: int) -> list[Answer]:
    engine = await NativeEngine.start(source, dtype="float32", max_running=3, tensor_parallel=size)
    try:
        return await asyncio.gather(*(answer(engine, number) for number in range(5)))
    finally:
        await engine.close()


def children(process: int) -> list[int]:
    """Return the ids of a process's children."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    names = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat")]
    return [pid for pid, stat in zip(names, stats, strict=False) if int(stat[1]) == process]


def wait_for_the_end(watched: int) -> None:
    assert select.select([watched], [], [], 60)[0], "a process was left behind"
    os.close(watched)


def test_tokens_and_logprobs_are_those_of_one_process(make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    source = resolve(make_lora(base), base=base)
    for mine, expected in zip(asyncio.run(answers(source, 2)), asyncio.run(answers(source, 1)), strict=True):
        assert mine[0] == expected[0]
        assert mine[1] == pytest.approx(expected[1], abs=TOLERANCE)


@pytest.mark.parametrize("killed", ["engine", "rank"])
def test_the_end_of_one_process_is_the_end_of_all(killed: str, make_llama: Make) -> None:
    async def scenario() -> None:
        source = resolve(make_llama(max_position_embeddings=4096))
        engine = await NativeEngine.start(source, dtype="float32", tensor_parallel=2)
        try:
            (rank,) = children(engine._process.pid)
            watched = os.pidfd_open(rank)
            stream = engine.generate(
                GenerationRequest(id="x", prompt_ids=[1], params=SamplingParams(max_tokens=4000, temperature=0))
            )
            await anext(stream)
            os.kill(rank if killed == "rank" else engine._process.pid, 9)
            with pytest.raises(EngineError, match=r"the native engine (was )?ended"):
                while True:
                    await anext(stream)
            assert await asyncio.wait_for(engine.ended(), 60)
            wait_for_the_end(watched)
        finally:
            await engine.close()

    asyncio.run(scenario())


def test_adapters_are_not_loaded_unmerged(make_llama: Make, make_lora: Make) -> None:
    async def scenario() -> None:
        base = make_llama()
        engine = await NativeEngine.start(resolve(base), dtype="float32", tensor_parallel=2)
        try:
            with pytest.raises(InputError, match="devices that divide a model do not compute adapters unmerged"):
                await engine.load_adapter("tickets", make_lora(base))
        finally:
            await engine.close()

    asyncio.run(scenario())


def test_the_end_of_an_idle_rank_is_noticed(make_llama: Make) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(make_llama()), dtype="float32", tensor_parallel=2)
        try:
            (rank,) = children(engine._process.pid)
            os.kill(rank, 9)
            assert "exit code 1" in await asyncio.wait_for(engine.ended(), 60)
        finally:
            await engine.close()

    asyncio.run(scenario())


def test_what_cannot_be_divided_is_refused_and_nothing_stays(make_llama: Make) -> None:
    before = children(os.getpid())
    with pytest.raises(InputError, match=r"3 devices do not divide its 4 attention heads; .*choose another number"):
        NativeCore(EngineConfig(model_dir=str(make_llama()), tensor_parallel=3))
    assert children(os.getpid()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 0}, "choose from 1 to"),
        ({"tensor_parallel": 2, "cpu_step": "compiled"}, "the compiled step runs in one process"),
        ({"tensor_parallel": 2, "weights": "int8"}, "int8 weights need the compiled step"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, object], message: str, make_llama: Make) -> None:
    with pytest.raises(InputError, match=message):
        NativeCore(EngineConfig(model_dir=str(make_llama()), **options))  # type: ignore[arg-type]
