"""Protects what clients and operators ask beside generation, and who is let in."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import FakeEngine, chat_body, make_served
from tuneserve._version import __version__
from tuneserve.errors import EngineError
from tuneserve.gateway import Agreement, ServedModel, Settings, Step, create_app
from tuneserve.gateway._app import application
from tuneserve.gateway._state import Gateway
from tuneserve.text import Tokenizer

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


def _client(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(application(gateway)), base_url="http://localhost:8000")


async def test_the_model_is_listed(client: httpx.AsyncClient) -> None:
    model = {
        "id": "tuned", "object": "model", "created": 1_700_000_000, "owned_by": "tuneserve", "max_model_len": 256,
    }  # fmt: skip
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [model]}
    assert (await client.get("/v1/models/tuned")).json() == model


async def test_the_version_names_the_engine_of_each_model(served: ServedModel) -> None:
    gateway = Gateway(Settings())
    gateway.open(served, replace(served, name="other", engine=FakeEngine([], context_length=64)))
    async with _client(gateway) as client:
        version = (await client.get("/version")).json()
    assert version["version"] == __version__
    engines = version["engines"]
    assert {name: engine["context_length"] for name, engine in engines.items()} == {"tuned": 256, "other": 64}


async def test_ready_follows_the_life_of_the_server(served: ServedModel, engine: FakeEngine) -> None:
    gateway = Gateway(Settings())
    async with _client(gateway) as client:

        async def seen() -> tuple[str, int, int, int]:
            health, ready = await client.get("/health"), await client.get("/ready")
            if ready.status_code == 503:
                assert ready.headers["retry-after"]
            generated = await client.post(CHAT, json=chat_body())
            return health.json()["status"], health.status_code, ready.status_code, generated.status_code

        assert await seen() == ("starting", 200, 503, 503)
        assert (await client.get("/v1/models")).status_code == 503
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/version")).json()["engines"] == {}
        gateway.open(served)
        assert await seen() == ("ready", 200, 200, 200)
        engine.ready = False
        assert await seen() == ("failed", 503, 503, 503)
        engine.ready = True
        gateway.drain()
        assert await seen() == ("draining", 200, 503, 503)


async def test_metrics_count_what_happened(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post(CHAT, json=chat_body())
    await client.post(CHAT, json=chat_body(n=0))
    await client.get("/nowhere/1")
    await client.get("/nowhere/2")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["http_requests_total", CHAT, "POST", "200"] == 1
    assert samples["http_requests_total", CHAT, "POST", "400"] == 1
    assert samples["http_requests_total", "other", "GET", "404"] == 2
    assert samples["http_request_duration_seconds_count", CHAT] == 2
    assert samples["vllm:prompt_tokens_total", "tuned"] == len(engine.prompt)
    assert samples["vllm:generation_tokens_total", "tuned"] == 15
    assert samples["vllm:request_success_total", "stop", "tuned"] == 1
    assert samples["vllm:time_to_first_token_seconds_count", "tuned"] == 1
    assert samples["vllm:inter_token_latency_seconds_count", "tuned"] == 14
    assert samples["vllm:request_time_per_output_token_seconds_count", "tuned"] == 1
    assert samples["vllm:e2e_request_latency_seconds_count", "tuned"] == 1
    assert samples["vllm:num_requests_running", "tuned"] == 3
    assert samples["vllm:num_requests_waiting", "tuned"] == 2
    assert samples["vllm:kv_cache_usage_perc", "tuned"] == 0.25
    assert samples["tuneserve_engine_ready", "tuned"] == 1


async def test_a_long_prompt_does_not_hold_up_others(served: ServedModel) -> None:
    encoding, encoded = threading.Semaphore(0), threading.Event()

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(served.tokenizer, name)

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            encoding.release()
            encoded.wait()
            return [1]

    app = create_app(replace(served, tokenizer=cast(Tokenizer, Slow())))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        asking = [asyncio.create_task(client.post(CHAT, json=chat_body("Hi" * 2000))) for _ in range(5)]
        await asyncio.to_thread(encoding.acquire)
        await asyncio.to_thread(encoding.acquire)
        assert (await client.get("/health")).status_code == 200
        assert not encoding.acquire(blocking=False), "more than two prompts were encoded at once"
        encoded.set()
        assert {response.status_code for response in await asyncio.gather(*asking)} == {200}


async def test_metrics_survive_a_silent_engine(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stats() -> None:
        raise EngineError("gone.")

    monkeypatch.setattr(engine, "stats", stats)
    assert (await client.get("/metrics")).status_code == 200


async def test_only_allowed_hosts_are_served(served: ServedModel) -> None:
    app = create_app(served, Settings(allowed_hosts=frozenset({"localhost", "127.0.0.1", "::1"})))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        for host in ("localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000"):
            assert (await client.get("/v1/models", headers={"Host": host})).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example:8000", "[::1", "", "127.0.0.1@evil.example"):
            response = await client.get("/v1/models", headers={"Host": host})
            assert response.status_code == 403, host
            assert response.json()["error"]["code"] == "host_not_allowed"


async def test_other_web_pages_cannot_make_it_work(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        response = await client.post(CHAT, json=chat_body(), headers=headers)
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "cross_origin"
    assert not engine.requests
    for headers in (
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://behind-a-proxy.example"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://testserver"},
    ):
        response = await client.post(CHAT, json=chat_body(), headers=headers)
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers


def _two(directory: Path) -> tuple[ServedModel, ServedModel, Gateway]:
    base, tuned = replace(make_served(directory), name="base"), make_served(directory)
    gateway = Gateway(Settings())
    gateway.open(base, tuned)
    return base, tuned, gateway


async def test_each_model_is_answered_by_its_own_engine(tokenizer_dir: Path) -> None:
    base, tuned, gateway = _two(tokenizer_dir)
    async with _client(gateway) as client:
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["base", "tuned"]
        for name, asked, idle in (("base", base, tuned), ("tuned", tuned, base)):
            before = len(cast(FakeEngine, idle.engine).requests)
            answer = await client.post(CHAT, json=chat_body(model=name))
            assert answer.json()["model"] == name
            assert len(cast(FakeEngine, idle.engine).requests) == before
            assert cast(FakeEngine, asked.engine).requests
        # Without a name the first is meant.
        assert (await client.post("/tokenize", json={"prompt": "Hi"})).json()["count"] == 2


async def test_an_engine_that_is_down_takes_no_other_model_with_it(tokenizer_dir: Path) -> None:
    base, _, gateway = _two(tokenizer_dir)
    cast(FakeEngine, base.engine).ready = False
    async with _client(gateway) as client:
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).json() == {"status": "failed"}
        assert (await client.post(CHAT, json=chat_body())).status_code == 200
        refused = await client.post(CHAT, json=chat_body(model="base"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_error"
        metrics = (await client.get("/metrics")).text
        assert 'tuneserve_engine_ready{model_name="base"} 0.0' in metrics
        assert 'tuneserve_engine_ready{model_name="tuned"} 1.0' in metrics
        for name in ("base", "tuned"):
            assert f'vllm:num_requests_running{{model_name="{name}"}} 3.0' in metrics


async def test_a_model_tells_how_it_came_to_be(tokenizer_dir: Path) -> None:
    steps = (
        Step(kind="base", name="org/base", facts={"revision": "abc"}),
        Step(kind="engine", name="fake", parity=Agreement(kl=1e-4, top1=1.0, positions=9, at_least=True)),
    )
    gateway = Gateway(Settings())
    gateway.open(replace(make_served(tokenizer_dir), lineage=steps))
    async with _client(gateway) as client:
        (model,) = (await client.get("/v1/tuneserve/models")).json()["data"]
    assert model["id"] == "tuned"
    assert model["ready"] is True
    assert model["engine"]["engine"] == "fake"
    assert model["lineage"] == [
        {"kind": "base", "name": "org/base", "facts": {"revision": "abc"}, "parity": None},
        {"kind": "engine", "name": "fake", "facts": {},
         "parity": {"kl": 1e-4, "top1": 1.0, "positions": 9, "at_least": True}},
    ]  # fmt: skip
