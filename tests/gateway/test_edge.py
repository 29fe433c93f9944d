"""Protects: who may use the API from a browser, how many may wait, and what is said of each request in the log."""

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, running_server
from tuneserve.errors import InputError
from tuneserve.gateway import Limits, ServedModel, Settings, add_key, create_app, logging_to
from tuneserve.gateway._log import dropped_lines

CHAT = "/v1/chat/completions"
WAIT = 30


def client_of(served: ServedModel, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(served, Settings(**settings)))
    return httpx.AsyncClient(transport=transport, base_url="http://testserver")


@pytest.mark.anyio
async def test_pages_of_allowed_origins_may_use_the_api(served: ServedModel) -> None:
    page = {"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}
    ask = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with client_of(served, cors_origins=("https://chat.example",)) as client:
        preflight = await client.options(CHAT, headers=ask)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        response = await client.post(CHAT, json=chat_body(), headers=page)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        other = await client.post(CHAT, json=chat_body(), headers={**page, "Origin": "https://evil.example"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers
    async with client_of(served, cors_origins=("*",)) as client:
        assert (await client.post(CHAT, json=chat_body(), headers=page)).status_code == 200
    async with client_of(served) as client:
        preflight = await client.options(CHAT, headers=ask)
        assert preflight.status_code == 405
        assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://chat.example/page", "null", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(InputError, match="without a path"):
        Settings(cors_origins=(origin,)).check()


@pytest.mark.anyio
async def test_too_many_headers_are_refused(served: ServedModel) -> None:
    async with client_of(served) as client:
        response = await client.get("/health", headers={f"x-{number}": "1" for number in range(200)})
        assert response.status_code == 431


def test_past_the_queue_requests_are_refused_at_once(served: ServedModel, engine: FakeEngine) -> None:
    engine.hold_after = 1
    places = engine.info.max_running + 2
    with running_server(served, Settings(max_queue=2)) as url:
        answers: list[int] = []

        def ask() -> None:
            answers.append(httpx.post(url + CHAT, json=chat_body(), timeout=WAIT).status_code)

        threads = [threading.Thread(target=ask) for _ in range(places)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert engine.holding.acquire(timeout=WAIT)
        refused = httpx.post(url + CHAT, json=chat_body())
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.headers["retry-after"]
        assert httpx.get(f"{url}/v1/models").status_code == 200
        engine.release()
        for thread in threads:
            thread.join()
        assert answers == [200] * places
        assert httpx.post(url + CHAT, json=chat_body()).status_code == 200


@pytest.mark.anyio
async def test_request_ids_are_taken_over_when_well_formed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health", headers={"X-Request-Id": "abc-1._Z"})).headers["x-request-id"] == "abc-1._Z"
    for strange in ("a b", "x" * 129, "a\tb", "é", ""):
        response = await client.get("/health", headers={"X-Request-Id": strange.encode()})  # type: ignore[arg-type]
        assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])


@contextmanager
def logged(form: Any) -> Iterator[list[str]]:
    stream, lines = io.StringIO(), list[str]()
    with logging_to(stream, form):
        yield lines
    lines += stream.getvalue().splitlines()


@pytest.mark.anyio
async def test_each_request_is_one_line_without_its_text(
    served: ServedModel, engine: FakeEngine, tmp_path: Path
) -> None:
    key = add_key(tmp_path / "keys.toml", "alice", Limits())
    with logged("json") as lines:
        async with client_of(served, api_keys=tmp_path / "keys.toml") as client:
            headers = {"x-api-key": key, "X-Request-Id": "mine"}
            await client.post(CHAT, json=chat_body("a secret"), headers=headers)
            await client.get("/nowhere%0A2026%20forged", headers=headers)
            await client.post(CHAT, json=chat_body("a secret"))
    first, second, third = map(json.loads, lines)
    assert first["request_id"] == "mine"
    assert (first["method"], first["path"], first["status"]) == ("POST", CHAT, 200)
    assert (first["key"], first["model"]) == ("alice", "tuned")
    assert (first["prompt_tokens"], first["generated_tokens"]) == (len(engine.prompt), 15)
    assert 0 <= first["first_token_seconds"] <= first["seconds"]
    assert second["status"] == 404
    assert (third["status"], "key" in third) == (401, False)
    assert "secret" not in "".join(lines)
    assert key not in "".join(lines)


@pytest.mark.anyio
async def test_text_lines_cannot_be_forged(served: ServedModel) -> None:
    with logged("text") as lines:
        async with client_of(served) as client:
            await client.get("/no%0A2026-01-01%20forged%20line")
            await client.get("/a%20status=200")
    assert len(lines) == 2
    assert all(line.count("status=") == 1 or '"' in line for line in lines)


@pytest.mark.anyio
async def test_prompts_are_logged_when_asked(served: ServedModel) -> None:
    with logged("json") as lines:
        async with client_of(served, log_prompts=True) as client:
            await client.post(CHAT, json=chat_body("shown"))
            await client.post(CHAT, json=chat_body("x" * 100_000))
    assert json.loads(json.loads(lines[0])["body"])["messages"][0]["content"] == "shown"
    assert len(json.loads(lines[1])["body"]) == 1 << 16


@pytest.mark.anyio
async def test_a_full_disk_does_not_stop_serving(served: ServedModel) -> None:
    before = dropped_lines()
    with Path("/dev/full").open("w", buffering=1) as full:
        with logging_to(full, "text"):
            async with client_of(served) as client:
                for _ in range(5):
                    assert (await client.post(CHAT, json=chat_body())).status_code == 200
        assert dropped_lines() == before + 5
        with pytest.raises(OSError, match="No space"):
            full.close()


@pytest.mark.anyio
async def test_what_goes_wrong_is_logged_with_its_request(served: ServedModel, engine: FakeEngine) -> None:
    engine.fail_after = 2
    with logged("json") as lines:
        async with client_of(served) as client:
            await client.post(CHAT, json=chat_body(), headers={"X-Request-Id": "broken"})
    assert [json.loads(line)["request_id"] for line in lines] == ["broken", "broken"]
    assert json.loads(lines[0])["level"] == "error"
    assert not logging.getLogger("tuneserve").handlers
