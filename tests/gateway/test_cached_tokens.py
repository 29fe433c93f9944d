"""Protects: what an engine found in its prefix cache is told in the form of each API, each prompt counted once."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, make_served, named_events, sse_events
from tests.gateway.published import problems
from tuneserve.engines.contract import GenerationRequest, TokenChunk
from tuneserve.gateway import create_app

pytestmark = pytest.mark.anyio


@dataclass
class CachingEngine(FakeEngine):
    """Finds nothing for the first sequence of a prompt, and all but one token for those that follow."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        again = any(other.prompt_ids == request.prompt_ids for other in self.requests)
        found: int | None = len(request.prompt_ids) - 1 if again else 0
        async for chunk in super().generate(request):
            yield msgspec.structs.replace(chunk, cached_tokens=found)
            found = None


@pytest.fixture
async def caching(tokenizer_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(make_served(tokenizer_dir, CachingEngine)))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_openais_usage_has_cached_tokens(caching: httpx.AsyncClient) -> None:
    for expected in (0, 1):
        answer = await _post(caching, "/v1/chat/completions", chat_body())
        prompt = answer["usage"]["prompt_tokens"]
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": expected * (prompt - 1)}
        assert problems("openai", "CreateChatCompletionResponse", answer) == []
    body = chat_body(stream=True, stream_options={"include_usage": True})
    events = sse_events((await caching.post("/v1/chat/completions", json=body)).text)
    assert events[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": prompt - 1}


async def test_each_prompt_counts_once(caching: httpx.AsyncClient) -> None:
    body = {"model": "tuned", "prompt": ["abc", "defgh"], "n": 3, "max_tokens": 2}
    for expected in (0, 2 + 4):
        usage = (await _post(caching, "/v1/completions", body))["usage"]
        assert usage["prompt_tokens"] == 8
        assert usage["prompt_tokens_details"] == {"cached_tokens": expected}


async def test_a_response_has_cached_tokens(caching: httpx.AsyncClient) -> None:
    body = {"model": "tuned", "input": "Hi", "store": False}
    for expected in (0, 1):
        usage = (await _post(caching, "/v1/responses", body))["usage"]
        assert usage["input_tokens_details"]["cached_tokens"] == expected * (usage["input_tokens"] - 1)


async def test_anthropics_input_is_what_was_not_cached(caching: httpx.AsyncClient) -> None:
    body = chat_body(max_tokens=3)
    first = (await _post(caching, "/v1/messages", body))["usage"]
    assert first["cache_read_input_tokens"] == 0
    events = dict(named_events((await caching.post("/v1/messages", json={**body, "stream": True})).text))
    for usage in (events["message_start"]["message"]["usage"], events["message_delta"]["usage"]):
        assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (1, first["input_tokens"] - 1)


async def test_an_engine_that_does_not_say_leaves_it_out(client: httpx.AsyncClient) -> None:
    assert "prompt_tokens_details" not in (await _post(client, "/v1/chat/completions", chat_body()))["usage"]
    usage = (await _post(client, "/v1/messages", chat_body(max_tokens=3)))["usage"]
    assert usage["cache_read_input_tokens"] is None
