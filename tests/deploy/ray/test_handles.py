"""Protects: what Serve says of a replica becomes tokens, a lost replica, or an error that names the remedy."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import RayServeException

from tests.deploy.ray.losing import info
from tuneserve.deploy.ray import read_options
from tuneserve.deploy.ray._engine import ReplicaLostError
from tuneserve.deploy.ray._handles import HandleReplicas
from tuneserve.deploy.ray._replica import Accepted, Failed, Message, Refused
from tuneserve.deploy.ray._routing import route_key
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, SamplingParams, TokenChunk
from tuneserve.errors import EngineError, RequestError

pytestmark = pytest.mark.anyio
Script = Callable[[], AsyncGenerator[Message, None]]
ASKED = GenerationRequest(id="x", prompt_ids=list(range(40)), params=SamplingParams(temperature=0))
LAST = TokenChunk(token_ids=[8, 9], finish_reason="stop")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Messages:
    """A response of Serve's that streams, as far as it is used."""

    def __init__(self, script: Script) -> None:
        self._messages, self.cancelled = script(), False

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await anext(self._messages)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A handle of Serve's, as far as it is used: ``script`` is what a replica says, ``answers`` what all do."""

    def __init__(self, script: Script, answers: list[Any] | Exception | None = None) -> None:
        self._script, self.answers = script, answers or []
        self.info = SimpleNamespace(remote=_info)
        self.sent: list[tuple[Messages, GenerationRequest, bytes | None]] = []

    def options(self, *, stream: bool, method_name: str) -> "Handle":
        assert stream and method_name == "generate"
        return self

    def remote(self, request: GenerationRequest, key: bytes | None) -> Messages:
        self.sent.append((Messages(self._script), request, key))
        return self.sent[-1][0]

    def broadcast(self, method: str) -> "Handle":
        assert method == "stats"
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


async def _info() -> EngineInfo:
    return info(resumes=True)


def saying(*steps: Message | BaseException) -> Script:
    async def script() -> AsyncGenerator[Message, None]:
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            yield step

    return script


async def silent() -> AsyncGenerator[Message, None]:
    await asyncio.Event().wait()
    yield Accepted()


def replicas(handle: Handle, **args: Any) -> HandleReplicas:
    return HandleReplicas(handle, read_options({"source": "demo", "max_replicas": 3, "max_running": 5, **args}))


async def test_tokens_come_and_nothing_is_cancelled() -> None:
    handle = Handle(saying(Accepted(), TokenChunk(token_ids=[7]), LAST))
    assert [chunk async for chunk in replicas(handle).stream(ASKED)] == [TokenChunk(token_ids=[7]), LAST]
    ((sent, request, key),) = handle.sent
    assert request is ASKED and key == route_key(ASKED.prompt_ids, None, 4)
    assert not sent.cancelled


@pytest.mark.parametrize(
    ("said", "error", "says"),
    [
        ((Accepted(), Refused("too long", "prompt")), RequestError, "too long"),
        ((Accepted(), Failed("out of luck")), EngineError, "out of luck"),
        ((ActorDiedError(),), ReplicaLostError, "The actor died unexpectedly before finishing this task$"),
        ((Accepted(), ActorDiedError()), ReplicaLostError, "The actor died"),
        ((Accepted(), asyncio.CancelledError()), ReplicaLostError, "it was stopped while it worked"),
        ((Accepted(), RayTaskError("f", "Traceback", KeyError("x"))), EngineError, "failed unexpectedly .*; report it"),
        ((RayServeException("none left.\nat all"),), EngineError, r"there are no replicas \(none left\); see 'serve"),
    ],
)
async def test_what_goes_wrong_gets_its_name(
    said: tuple[Message | BaseException, ...], error: type[Exception], says: str
) -> None:
    handle = Handle(saying(*said))
    with pytest.raises(error, match=says) as raised:
        [chunk async for chunk in replicas(handle).stream(ASKED)]
    assert isinstance(raised.value, ReplicaLostError) == (error is ReplicaLostError)
    # The end of a sequence that the replica itself has told needs no word back.
    assert handle.sent[0][0].cancelled == (not isinstance(said[-1], Refused | Failed))


async def test_a_request_that_no_replica_takes_ends() -> None:
    handle = Handle(silent)
    with pytest.raises(EngineError, match=r"no replica took the request within 0\.01 seconds; see 'serve status'"):
        [chunk async for chunk in replicas(handle, queue_seconds=0.01).stream(ASKED)]
    assert handle.sent[0][0].cancelled


async def test_a_client_that_leaves_frees_the_replica() -> None:
    handle = Handle(saying(Accepted(), TokenChunk(token_ids=[7]), LAST))
    stream = replicas(handle).stream(ASKED)
    await anext(stream)
    await stream.aclose()
    assert handle.sent[0][0].cancelled


async def test_a_gateway_that_is_stopped_takes_nothing_for_a_lost_replica() -> None:
    handle = Handle(silent)
    task = asyncio.ensure_future(anext(replicas(handle).stream(ASKED)))
    while not handle.sent:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.sent[0][0].cancelled


async def test_the_load_is_that_of_this_gateway_and_of_all_caches() -> None:
    handle = Handle(
        saying(Accepted(), TokenChunk(token_ids=[7]), LAST),
        [
            EngineStats(running=9, waiting=9, cache_usage=0.5, prefix_queries=10, prefix_hits=4),
            ActorDiedError(),
            EngineStats(running=9, waiting=9, cache_usage=0.25, prefix_queries=30, prefix_hits=6),
        ],
    )
    behind = replicas(handle)
    stream = behind.stream(ASKED)
    await anext(stream)
    load = EngineStats(running=1, waiting=0, cache_usage=0.375, prefix_queries=40, prefix_hits=10)
    assert await behind.stats() == load
    handle.answers = ActorDiedError()
    assert await behind.stats() == load
    assert [chunk async for chunk in stream] == [LAST]
    assert (await behind.stats()).running == 0


async def test_waiting_is_what_no_replica_has_taken() -> None:
    behind = replicas(Handle(silent))
    task = asyncio.ensure_future(anext(behind.stream(ASKED)))
    while not (await behind.stats()).waiting:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await behind.stats() == EngineStats(running=0, waiting=0, cache_usage=0.0)


async def test_as_many_run_as_all_replicas_may_run() -> None:
    assert (await replicas(Handle(silent)).info()).max_running == 15
