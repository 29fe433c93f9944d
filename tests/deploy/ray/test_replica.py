"""Protects: a replica that cannot serve says why and leaves nothing behind; what goes wrong with a sequence is told."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.deploy.ray.losing import counting, info
from tuneserve.deploy.ray import RayOptions, _replica, read_options
from tuneserve.deploy.ray._replica import Accepted, Failed, Refused, Replica, start_engine
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, SamplingParams, TokenChunk
from tuneserve.engines.kind import Preflight
from tuneserve.errors import EngineError, InputError, ParityError, RequestError

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]
ASKED = GenerationRequest(id="x", prompt_ids=[1], params=SamplingParams(temperature=0, max_tokens=2))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ScriptedEngine:
    """Counts, unless it is told to fail; and notes that it was closed."""

    def __init__(self, error: Exception | None = None, *, ready: bool = True, lacks: tuple[str, ...] = ()) -> None:
        self.error, self.ready, self.closed = error, ready, False
        self.info: EngineInfo = msgspec.structs.replace(info(resumes=True), lacks=lacks)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        async for chunk in counting(request):
            yield chunk
            if self.error is not None:
                raise self.error

    async def stats(self) -> EngineStats:
        if not self.ready:
            await asyncio.Event().wait()
        return EngineStats(running=1, waiting=0, cache_usage=0.25)

    async def close(self) -> None:
        self.closed = True


class ScriptedKind:
    name = "scripted"

    def __init__(self, engine: ScriptedEngine, preflight: Preflight) -> None:
        self.engine, self.preflight, self.started = engine, preflight, False

    def check(self, *_: object) -> Preflight:
        return self.preflight

    async def start(self, *_: object) -> ScriptedEngine:
        self.started = True
        return self.engine


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> ScriptedKind:
    """Return what is started in place of an engine."""
    found = ScriptedKind(ScriptedEngine(), Preflight())
    monkeypatch.setattr(_replica, "find_engine", lambda _: found)
    return found


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Return what has been compared with what, by the source's and the adapter's name; nothing is found equal."""
    calls: list[tuple[str, str | None]] = []

    async def verify(_: object, source: Any, __: object, adapter: str | None) -> Any:
        calls.append((source.name, adapter))
        if adapter is not None:
            raise ParityError("it is another model.")
        return type("Verdict", (), {"mean_kl": 0.0})

    monkeypatch.setattr(_replica, "verify_engine", verify)
    return calls


async def replica(options: RayOptions) -> Replica:
    """Return a replica as Serve makes it, which awaits its initialisation."""
    made = object.__new__(Replica)
    await made.__init__(options)  # type: ignore[misc]
    return made


async def messages(made: Replica) -> list[Any]:
    return [message async for message in made.generate(ASKED, None)]


def options(source: Path, **args: Any) -> RayOptions:
    return read_options({"source": str(source), "verify": False, **args})


async def test_tokens_come_after_the_word_that_they_will(make_llama: Make, kind: ScriptedKind) -> None:
    first, *chunks = await messages(await replica(options(make_llama())))
    assert first == Accepted()
    assert [chunk.token_ids for chunk in chunks] == [[2], [3]]


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (RequestError("too long", "prompt"), Refused("too long", "prompt")),
        (EngineError("out of luck"), Failed("out of luck")),
    ],
)
async def test_what_goes_wrong_is_told(make_llama: Make, kind: ScriptedKind, error: Exception, last: object) -> None:
    kind.engine.error = error
    assert (await messages(await replica(options(make_llama()))))[-1] == last


async def test_a_replica_leaves_with_its_engine(
    make_llama: Make, kind: ScriptedKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    monkeypatch.setattr(_replica, "_leave", left.append)
    made = await replica(options(make_llama()))
    kind.engine.error, kind.engine.ready = EngineError("it is gone"), False
    await messages(made)
    assert left == ["it is gone"]


async def test_an_engine_that_does_not_answer_is_unhealthy(
    make_llama: Make, kind: ScriptedKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await replica(options(make_llama()))
    await made.check_health()
    monkeypatch.setattr(_replica, "_STATS_SECONDS", 0.01)
    kind.engine.ready = False
    with pytest.raises(EngineError, match="the engine does not answer; see "):
        await made.check_health()


async def test_one_that_is_never_ready_is_given_up(make_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(_replica, "start_engine", never)
    says = r"the native engine was not ready after 0.01 seconds on \S+; see .+ there, or raise start_seconds"
    with pytest.raises(EngineError, match=says):
        await replica(options(make_llama(), start_seconds=0.01))


async def test_what_the_engine_cannot_load_is_refused_with_the_export(make_llama: Make, kind: ScriptedKind) -> None:
    kind.preflight = Preflight(problems=("it is upside down", "it is late"), export="merged_16bit")
    says = "scripted cannot serve base: it is upside down; it is late; export it with --method merged_16bit and serve"
    with pytest.raises(InputError, match=re.escape(says)):
        await start_engine(options(make_llama()))
    assert not kind.started


async def test_each_adapter_is_compared_and_another_model_is_stopped(
    make_llama: Make, make_lora: Make, kind: ScriptedKind, compared: list[tuple[str, str | None]]
) -> None:
    base = make_llama()
    asked = options(base, adapters={"tuned": str(make_lora(base))}, verify=True)
    with pytest.raises(ParityError):
        await start_engine(asked)
    assert compared == [("base", None), ("adapter", "tuned")]
    assert kind.engine.closed


async def test_an_engine_without_log_probabilities_is_not_compared(
    make_llama: Make, kind: ScriptedKind, compared: list[tuple[str, str | None]]
) -> None:
    kind.engine = ScriptedEngine(lacks=("logprobs",))
    assert await start_engine(options(make_llama(), verify=True)) is kind.engine
    assert not compared
