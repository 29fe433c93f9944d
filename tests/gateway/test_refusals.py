"""Protects that every field is honoured, neutral, or refused by name in OpenAI's error form."""

from typing import Any, get_args

import httpx
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from openai.types.responses.service_tier import ServiceTier

from tests.gateway.conftest import FakeEngine, chat_body

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

NEUTRAL = {
    "n": 1, "tools": [], "tool_choice": "none", "store": False, "metadata": {"a": "b"}, "user": "u",
    "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "service_tier": "auto",
    "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0,
    "response_format": {"type": "text"}, "parallel_tool_calls": True, "modalities": ["text"], "stop": [],
    "reasoning_effort": "none", "verbosity": "medium", "functions": [], "function_call": "auto", "stream": False,
}  # fmt: skip


async def _refusal(client: httpx.AsyncClient, url: str, body: Any) -> dict[str, Any]:
    response = await client.post(url, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


async def test_neutral_values_are_accepted(client: httpx.AsyncClient) -> None:
    assert (await client.post(CHAT, json=chat_body(**NEUTRAL))).status_code == 200
    body = {"model": "tuned", "prompt": "a", "n": 1, "best_of": 1, "echo": False, "suffix": "", "logprobs": None}
    assert (await client.post(COMPLETIONS, json=body)).status_code == 200


MESSAGE = {"model": "tuned", "messages": [{"role": "user", "content": "a"}]}
# The fields that the official clients know, by the body that they go into.
FIELDS: dict[str, tuple[dict[str, Any], type]] = {
    CHAT: (chat_body(), chat_create_params.CompletionCreateParamsBase),
    COMPLETIONS: ({"model": "tuned", "prompt": "a"}, completion_create_params.CompletionCreateParamsBase),
    "/v1/responses": ({"model": "tuned", "input": "a"}, response_create_params.ResponseCreateParamsBase),
    "/v1/embeddings": ({"model": "tuned", "input": "a"}, embedding_create_params.EmbeddingCreateParams),
    "/v1/messages": ({**MESSAGE, "max_tokens": 1}, message_create_params.MessageCreateParamsBase),
    "/v1/messages/count_tokens": (MESSAGE, message_count_tokens_params.MessageCountTokensParams),
}


@pytest.mark.parametrize(
    ("path", "field"), [(path, each) for path in FIELDS for each in FIELDS[path][1].__annotations__]
)
async def test_null_is_absent_and_no_field_of_the_clients_is_unknown(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    body, _ = FIELDS[path]
    if field not in body and path != "/v1/embeddings":
        assert (await client.post(path, json={**body, field: None})).status_code == 200
    response = await client.post(path, json={**body, field: [{"x": 1}] if field != "metadata" else 7})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert f"'{field}" in error["message"]
    assert error.get("code") != "unknown_parameter" or error["param"] != field
    assert "Unknown parameter" not in error["message"] or f"'{field}'" not in error["message"]


TIERS = get_args(get_args(ServiceTier)[0])


@pytest.mark.parametrize("tier", TIERS)
async def test_each_service_tier_has_its_place(client: httpx.AsyncClient, engine: FakeEngine, tier: str) -> None:
    """Published: an answer names the tier that it was given, and fast is priority."""
    kind = "flex" if tier == "flex" else "priority" if tier in ("priority", "fast", "ultrafast") else "default"
    for path in (CHAT, "/v1/responses"):
        answer = (await client.post(path, json={**FIELDS[path][0], "service_tier": tier})).json()
        assert answer["service_tier"] == kind
    assert {request.priority for request in engine.requests} == {{"flex": 1, "default": 0, "priority": -1}[kind]}


async def test_hints_about_caches_are_taken(client: httpx.AsyncClient) -> None:
    hints = {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}, "prompt_cache_key": "k"}
    part = {"text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages = [{"role": "user", "content": [{"type": "text", **part}]}]
    items = [{"role": "user", "content": [{"type": "input_text", **part}]}]
    assert (await client.post(CHAT, json=chat_body(messages=messages, **hints))).status_code == 200
    assert (await client.post("/v1/responses", json={"model": "tuned", "input": items, **hints})).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 10**9}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"bananas": None}, "bananas", "unknown_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream": 1}, "stream", "invalid_type"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": 10**400}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.01}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -5}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3.0}, "max_tokens", "invalid_type"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"user": 7}, "user", "invalid_type"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "", "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"model": None}, "model", "invalid_type"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, code: str
) -> None:
    error = await _refusal(client, CHAT, chat_body(**fields))
    assert (error["param"], error["code"]) == (param, code), error["message"]
    assert param.rpartition(".")[2] in error["message"]
    assert error["message"].endswith(".")
    assert not engine.requests


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": [[1], [-1]]}, "prompt[1][0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a"] * 5, "n": 26}, "n"),
        ({"prompt": [258]}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
async def test_what_is_wrong_with_a_completion_is_named(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    error = await _refusal(client, COMPLETIONS, {"model": "tuned", "prompt": "a", **fields})
    assert error["param"] == param, error["message"]


async def test_what_does_not_fit_the_context_is_refused(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    error = await _refusal(client, CHAT, chat_body("x" * 300))
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    error = await _refusal(client, CHAT, chat_body(max_tokens=256))
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    error = await _refusal(client, COMPLETIONS, {"model": "tuned", "prompt": [1] * 256})
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    error = await _refusal(client, COMPLETIONS, {"model": "tuned", "prompt": [1] * 250, "max_tokens": 7})
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert not engine.requests
    for length, more in ((255, 1), (250, 6)):
        fits = {"model": "tuned", "prompt": [1] * length, "max_tokens": more}
        assert (await client.post(COMPLETIONS, json=fits)).status_code == 200


async def test_a_thousand_errors_are_not_listed(client: httpx.AsyncClient) -> None:
    error = await _refusal(client, CHAT, chat_body(stream_options={f"x{index}": 0 for index in range(1_000)}))
    assert error["message"] == "The body has 1000 errors; correct it."


async def test_another_model_is_not_found(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post(CHAT, json=chat_body(model="other")),
        await client.get("/v1/models/org/other"),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert response.json()["error"]["param"] == "model"
