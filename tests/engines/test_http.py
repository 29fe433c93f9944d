"""Protects: what an engine's server streams, refuses and breaks off reaches the contract as it should."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tuneserve.engines._http import EngineClient
from tuneserve.engines._restarts import Restarts
from tuneserve.engines.supervised import Launch, SupervisedServer
from tuneserve.errors import EngineError, RequestError

STAND_IN = Path(__file__).with_name("stand_in.py")
EVENT = 'data: {"n": %d}\n\n'


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[SupervisedServer, EngineClient]]:
    server = await SupervisedServer.start(
        Launch(
            engine="stand-in",
            command=lambda port: [sys.executable, STAND_IN, str(port), "serve", directory],
            restarts=Restarts(first_delay=600.0),
        )
    )
    client = EngineClient("stand-in", server.address, {"Authorization": "Bearer mine"})
    try:
        yield server, client
    finally:
        await client.close()
        await server.close()


def run(directory: Path, scenario: Callable[[SupervisedServer, EngineClient], Coroutine[Any, Any, None]]) -> None:
    async def with_server() -> None:
        async with running(directory) as (server, client):
            await scenario(server, client)

    asyncio.run(asyncio.wait_for(with_server(), 120))


def test_answers_events_and_lines_are_decoded(tmp_path: Path) -> None:
    async def scenario(server: SupervisedServer, client: EngineClient) -> None:
        assert await client.json("GET", "/health") == {"auth": "Bearer mine"}
        assert await client.text("/health") == '{"auth": "Bearer mine"}'
        body = {"n": 3, "form": EVENT, "end": "data: [DONE]\n\ndata: never read\n\n"}
        assert [event async for event in client.events("/count", body)] == [{"n": 0}, {"n": 1}, {"n": 2}]
        body = {"n": 3, "form": "[%d]\n", "end": "[4]"}
        assert [line async for line in client.lines("/count", body)] == [[0], [1], [2], [4]]

    run(tmp_path, scenario)


def test_closing_a_stream_closes_its_connection(tmp_path: Path) -> None:
    async def scenario(server: SupervisedServer, client: EngineClient) -> None:
        async with aclosing(client.events("/count", {"n": 10**9, "form": EVENT})) as events:
            assert await anext(events) == {"n": 0}
        while not (tmp_path / "left").exists():
            await asyncio.sleep(0.01)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps({"error": {"message": "too long", "code": 400}}),
        json.dumps({"error": "too long"}),
        json.dumps({"message": "too long"}),
        json.dumps({"detail": "too long."}),
        "too\nlong",
    ],
)
def test_refusals_are_told_in_the_engines_words(tmp_path: Path, answer: str) -> None:
    async def scenario(server: SupervisedServer, client: EngineClient) -> None:
        for status in (400, 422):
            with pytest.raises(RequestError, match=r"^stand-in refused the request: too long\.$"):
                await client.json("POST", "/refuse", {"status": status, "answer": answer})
        with pytest.raises(EngineError, match=r"^stand-in answered with status 500: too long\.$"):
            await client.json("POST", "/refuse", {"status": 500, "answer": answer})

    run(tmp_path, scenario)


@pytest.mark.parametrize("form", ["data: {%d\n\n", "data: " + "[" * 100_000 + "%d\n\n", "data: \xff%d\n\n"])
def test_nonsense_is_an_engine_error(tmp_path: Path, form: str) -> None:
    async def scenario(server: SupervisedServer, client: EngineClient) -> None:
        with pytest.raises(EngineError, match="cannot be read"):
            await anext(client.events("/count", {"n": 1, "form": form}))

    run(tmp_path, scenario)


def test_a_dying_engine_ends_its_streams_and_refuses_new_ones(tmp_path: Path) -> None:
    async def scenario(server: SupervisedServer, client: EngineClient) -> None:
        events = client.events("/count", {"n": 10**9, "form": EVENT})
        await anext(events)
        with pytest.raises(EngineError):
            await client.text("/die")
        with pytest.raises(EngineError, match="stand-in"):
            async for _ in events:
                pass
        while server.ready:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="exit code 7 and is being started again"):
            await client.json("GET", "/health")

    run(tmp_path, scenario)
