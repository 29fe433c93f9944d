"""Protects: a sequence whose replica is lost goes on as if nothing had happened, or ends with an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.ray.losing import LosingReplicas, counting, info
from tuneserve.deploy.ray._engine import ReplicatedEngine
from tuneserve.engines.contract import FinishReason, GenerationRequest, Grammar, SamplingParams
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import EngineError
from tuneserve.sources import resolve

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request(prompt: list[int], **params: Any) -> GenerationRequest:
    return GenerationRequest(id="x", prompt_ids=prompt, params=SamplingParams(**{"temperature": 0, **params}))


async def collect(engine: ReplicatedEngine, asked: GenerationRequest) -> tuple[list[int], FinishReason | None]:
    tokens, reason = [], None
    async for chunk in engine.generate(asked):
        assert reason is None
        tokens += chunk.token_ids
        reason = chunk.finish_reason
    return tokens, reason


PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 11},
    "penalised": {"presence_penalty": 0.8, "frequency_penalty": 0.5, "min_tokens": 25},
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
async def test_native_sequences_go_on_to_the_same_tokens(params: dict[str, Any], make_llama: Make) -> None:
    engine = await NativeEngine.start(resolve(make_llama()), dtype="float32")
    try:
        asked = request([1, 2, 3], max_tokens=30, **params)
        undisturbed = await collect(ReplicatedEngine(LosingReplicas(engine.generate), engine.info), asked)
        replicas = LosingReplicas(engine.generate, lose_after=[7, 9])
        replicated = ReplicatedEngine(replicas, engine.info)
        assert await collect(replicated, asked) == undisturbed
        assert [each.resumed for each in replicas.requests] == [0, 7, 16]
        assert (await replicated.stats()).resumed == 2
    finally:
        await engine.close()


async def test_a_sequence_without_tokens_is_begun_again_on_any_engine() -> None:
    replicas = LosingReplicas(counting, lose_after=[0, 0])
    engine = ReplicatedEngine(replicas, info(resumes=False))
    asked = request([1], max_tokens=3, temperature=1.0, seed=4, grammar=Grammar(kind="json_object"))
    assert await collect(engine, asked) == ([2, 3, 4], "length")
    stats = await engine.stats()
    assert (stats.retried, stats.resumed, stats.broken_off) == (2, 0, 0)
    assert len({each.id for each in replicas.requests}) == 3


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"min_tokens": 5, "repetition_penalty": 1.2}])
async def test_engines_that_begin_anew_go_on_where_that_is_the_same(params: dict[str, Any]) -> None:
    replicas = LosingReplicas(counting, lose_after=[3])
    engine = ReplicatedEngine(replicas, info(resumes=False))
    asked = request([1], max_tokens=8, prompt_logprobs=1, **params)
    assert await collect(engine, asked) == (list(range(2, 10)), "length")
    again = replicas.requests[1]
    assert again.prompt_ids == [1, 2, 3, 4]
    assert (again.params.max_tokens, again.params.prompt_logprobs, again.resumed) == (5, None, 0)
    assert again.params.min_tokens == max(0, asked.params.min_tokens - 3)


@pytest.mark.parametrize(
    "params",
    [{"temperature": 1.0, "seed": 1}, {"presence_penalty": 1.0}, {"grammar": Grammar(kind="json_object")}],
)
async def test_they_end_with_an_error_where_it_is_not(params: dict[str, Any]) -> None:
    engine = ReplicatedEngine(LosingReplicas(counting, lose_after=[3]), info(resumes=False))
    with pytest.raises(EngineError, match=r"cannot go on elsewhere \(it was told to\); send the request again"):
        await collect(engine, request([1], max_tokens=8, **params))
    assert (await engine.stats()).broken_off == 1


@pytest.mark.parametrize(
    ("params", "lose_after", "reason"),
    [({"max_tokens": 4}, 4, "length"), ({"stop_token_ids": (6,)}, 5, "stop"), ({}, 63, "length")],
)
async def test_only_the_last_word_was_lost(params: dict[str, Any], lose_after: int, reason: FinishReason) -> None:
    replicas = LosingReplicas(counting, lose_after=[lose_after])
    tokens, ended = await collect(ReplicatedEngine(replicas, info(resumes=True)), request([1], **params))
    assert tokens == list(range(2, 2 + lose_after))
    assert ended == reason
    assert len(replicas.requests) == 1


async def test_a_request_that_ends_every_replica_is_given_up() -> None:
    replicas = LosingReplicas(counting, lose_after=[1, 0, 0, 0, 0])
    engine = ReplicatedEngine(replicas, info(resumes=True))
    with pytest.raises(EngineError, match="was lost too"):
        await collect(engine, request([1], max_tokens=9))
    assert len(replicas.requests) == 3


async def test_a_closed_engine_takes_nothing() -> None:
    engine = ReplicatedEngine(LosingReplicas(counting), info(resumes=True))
    assert engine.ready
    await engine.close()
    assert not engine.ready
    with pytest.raises(EngineError, match="stopped"):
        await collect(engine, request([1]))
