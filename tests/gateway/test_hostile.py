"""Protects the server from bodies made to break it: each is answered with a 4xx, quickly, and the next one works."""

import asyncio
import json
import string
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.conftest import chat_body
from tuneserve.gateway import ServedModel, Settings, create_app

CHAT = "/v1/chat/completions"
DEEP = 100_000


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"model": "tuned"} trailing',
        b'{"model": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"temperature": ' + b"9" * 50_000 + b"}",
        b"\xff\xfe{}",
        b'{"model": "\xed\xa0\x80"}',
        rb'{"model": "\ud800"}',
        b"[" * DEEP,
        b'{"a":' * 20_000,
        b'{"chat_template_kwargs": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        json.dumps({"messages": [{}] * 20_000}).encode(),
        json.dumps({"messages": [{"role": "user", "content": [{}] * 20_000}]}).encode(),
        json.dumps({f"x{index}": index for index in range(5_000)}).encode(),
        json.dumps(chat_body(metadata={f"x{index}": index for index in range(5_000)})).encode(),
        json.dumps(chat_body(stream_options={f"x{index}": index for index in range(5_000)})).encode(),
        json.dumps(chat_body("\x00" * 90_000)).encode(),
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_a_hostile_body_is_a_400(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post(CHAT, content=body)
    assert response.status_code in (400, 413)
    assert len(response.json()["error"]["message"]) < 400
    assert (await client.post(CHAT, json=chat_body())).status_code == 200


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_a_413(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    for content in (b" " * 100_001, b" " * 10_000_000, endless()):
        response = await client.post(CHAT, content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    assert (await client.post(CHAT, content=json.dumps(chat_body()).ljust(100_000))).status_code == 200


@pytest.mark.anyio
async def test_any_content_type_will_do(client: httpx.AsyncClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        response = await client.post(CHAT, content=json.dumps(chat_body()), headers={"Content-Type": kind})
        assert response.status_code == 200


@pytest.mark.anyio
async def test_unknown_paths_and_methods_have_the_same_form(client: httpx.AsyncClient) -> None:
    for method, path, status in (
        ("GET", "/v2/models", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/%ff%00<script>", 404),
        ("GET", "/redoc", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models/tuned", 405),
        ("POST", "/", 405),
    ):
        response = await client.request(method, path)
        assert response.status_code == status, path
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert (await client.get(CHAT)).headers["allow"] == "POST"


_words = st.text(string.printable + "é\u0000\U0001f600", max_size=12)
_numbers = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
_scalars = _numbers | _words | st.sampled_from(["tuned", "user", "system", "text", "auto"])
_keys = st.sampled_from(
    ["model", "messages", "prompt", "role", "content", "type", "text", "stream", "stream_options", "include_usage",
     "max_tokens", "stop", "n", "tools", "top_k", "seed", "chat_template_kwargs", "temperature", "stop_token_ids"]
) | _words  # fmt: skip
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4), max_leaves=12
)
_valid = st.fixed_dictionaries({"model": st.just("tuned"), "messages": st.just([{"role": "user", "content": "Hi"}])})


@pytest.fixture
def post(served: ServedModel) -> Iterator[Any]:
    """Return a function that posts a body without an event loop of its own each time."""
    app = create_app(served, Settings(max_body_bytes=100_000))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver")
    with asyncio.Runner() as runner:
        yield lambda path, body: runner.run(client.post(path, content=body))
        runner.run(client.aclose())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([CHAT, "/v1/completions"]),
    body=_values | st.builds(lambda valid, extra: {**valid, **extra}, _valid, st.dictionaries(_keys, _values)),
)
def test_no_json_is_a_500(post: Any, path: str, body: Any) -> None:
    response = post(path, json.dumps(body))
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200))
def test_no_bytes_are_a_500(post: Any, body: bytes) -> None:
    assert post(CHAT, body).status_code == 400
