"""Protects that answers and events are what OpenAI and Anthropic publish as theirs."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, named_events, sse_events
from tests.gateway.published import problems

pytestmark = pytest.mark.anyio
COMPLETION = {"model": "tuned", "prompt": ["a", "b"], "max_tokens": 4}
MESSAGE = {"model": "tuned", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
RESPONSE: dict[str, Any] = {"model": "tuned", "input": "Hi", "store": False}


@pytest.mark.parametrize(
    ("path", "body", "vendor", "schema"),
    [
        ("/v1/chat/completions", chat_body(), "openai", "CreateChatCompletionResponse"),
        (
            "/v1/chat/completions",
            chat_body(n=2, logprobs=True, top_logprobs=2, max_tokens=3, service_tier="auto"),
            "openai",
            "CreateChatCompletionResponse",
        ),
        ("/v1/completions", COMPLETION, "openai", "CreateCompletionResponse"),
        ("/v1/completions", {**COMPLETION, "n": 2, "logprobs": 2}, "openai", "CreateCompletionResponse"),
        ("/v1/responses", RESPONSE, "openai", "Response"),
        (
            "/v1/responses",
            {
                **RESPONSE,
                "max_output_tokens": 4,
                "instructions": "x",
                "include": ["message.output_text.logprobs"],
                "top_logprobs": 2,
                "metadata": {"a": "b"},
            },
            "openai",
            "Response",
        ),
        ("/v1/messages", MESSAGE, "anthropic", "Message"),
        ("/v1/messages", {**MESSAGE, "stop_sequences": ["o"]}, "anthropic", "Message"),
    ],
)
async def test_an_answer_conforms(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], vendor: str, schema: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert problems(vendor, schema, response.json()) == []


@pytest.mark.parametrize(
    ("path", "body", "schema"),
    [
        (
            "/v1/chat/completions",
            chat_body(n=2, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}),
            "CreateChatCompletionStreamResponse",
        ),
        ("/v1/completions", {**COMPLETION, "logprobs": 1}, "CreateCompletionResponse"),
    ],
)
async def test_chunks_conform(client: httpx.AsyncClient, path: str, body: dict[str, Any], schema: str) -> None:
    events = sse_events((await client.post(path, json={**body, "stream": True})).text)
    assert events.pop() == "[DONE]"
    assert [problems("openai", schema, as_published(event)) for event in events] == [[]] * len(events)


def as_published(event: dict[str, Any]) -> dict[str, Any]:
    """Take out what OpenAI sends in chunks of a completion, for which it publishes the whole completion alone."""
    if event.get("object") != "text_completion":
        return event
    choices = [{**each, "finish_reason": each["finish_reason"] or "stop"} for each in event["choices"]]
    return {**{key: value for key, value in event.items() if key != "usage"}, "choices": choices}


@pytest.mark.parametrize("fields", [{}, {"include": ["message.output_text.logprobs"], "max_output_tokens": 3}])
async def test_events_of_a_response_conform(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    response = await client.post("/v1/responses", json={**RESPONSE, "stream": True, **fields})
    events = named_events(response.text)
    assert all(name == data["type"] for name, data in events)
    assert [problems("openai", "ResponseStreamEvent", data) for _, data in events] == [[]] * len(events)


async def test_events_of_a_message_conform(client: httpx.AsyncClient) -> None:
    events = named_events((await client.post("/v1/messages", json={**MESSAGE, "stream": True})).text)
    assert all(name == data["type"] for name, data in events)
    assert [problems("anthropic", "MessageStreamEvent", data) for _, data in events] == [[]] * len(events)


@pytest.mark.parametrize(
    ("path", "vendor"),
    [
        ("/v1/chat/completions", "openai"),
        ("/v1/completions", "openai"),
        ("/v1/responses", "openai"),
        ("/v1/embeddings", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
    ],
)
async def test_errors_conform(client: httpx.AsyncClient, path: str, vendor: str) -> None:
    for content, status in ((b"{", 400), (b"{}", 400), (b'{"model": "nobody"}', 400), (b" " * 200_000, 413)):
        response = await client.post(path, content=content)
        assert response.status_code == status
        assert problems(vendor, "ErrorResponse", response.json()) == []
    response = await client.get(path)
    assert response.status_code == 405
    assert problems(vendor, "ErrorResponse", response.json()) == []


async def test_an_error_in_mid_stream_has_the_form_of_its_api(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 3
    name, data = named_events((await client.post("/v1/messages", json={**MESSAGE, "stream": True})).text)[-1]
    assert (name, problems("anthropic", "ErrorResponse", data)) == ("error", [])
    events = named_events((await client.post("/v1/responses", json={**RESPONSE, "stream": True})).text)
    name, data = events[-1]
    assert (name, problems("openai", "ResponseStreamEvent", data)) == ("response.failed", [])
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))


async def test_models_conform(client: httpx.AsyncClient) -> None:
    assert problems("openai", "ListModelsResponse", (await client.get("/v1/models")).json()) == []
    assert problems("openai", "Model", (await client.get("/v1/models/tuned")).json()) == []


def test_the_published_schemas_refuse_something(tmp_path: Path) -> None:
    assert problems("openai", "CreateChatCompletionResponse", {"id": 1})
    assert problems("anthropic", "Message", {"id": 1})
    assert problems("openai", "ResponseStreamEvent", {"type": "response.nothing"})
