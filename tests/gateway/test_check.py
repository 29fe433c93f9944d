"""Protects what ``tuneserve check`` finds beyond the core of the API: all of it here, and not on a faulty server."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.gateway.conftest import FakeEngine, make_served, running_server
from tests.gateway.test_other_routes import HostingEngine
from tuneserve.client import OpenAIClient
from tuneserve.client.checks import CheckResult, run_checks
from tuneserve.client.checks._run import _FURTHER
from tuneserve.gateway import ServedModel, _app

# What an engine that always says the same cannot show.
SCRIPTED = {
    "logit_bias", "bad_words", "min_tokens", "ignore_eos", "json_object", "regex", "choice", "embeddings",
}  # fmt: skip
REFUSED = {"tool_choice required", "tools streaming"}


@pytest.fixture
def served(tokenizer_dir: Path) -> ServedModel:
    served = make_served(tokenizer_dir, HostingEngine, context_length=1024)
    assert isinstance(served.engine, FakeEngine)
    return served


def _check(served: ServedModel) -> dict[str, CheckResult]:
    with running_server(served) as url, OpenAIClient(url, timeout=20) as client:
        return {result.name: result for result in run_checks(client) if result.name in _FURTHER}


def test_the_gateway_passes_what_a_scripted_engine_can_show(served: ServedModel) -> None:
    results = _check(served)
    assert set(results) == set(_FURTHER)
    found = {name: result.outcome for name, result in results.items() if name not in SCRIPTED}
    assert found == {name: "unsupported" if name in REFUSED else "pass" for name in found}


def test_an_engine_that_ignores_what_it_takes_fails(served: ServedModel) -> None:
    assert isinstance(served.engine, FakeEngine)
    served.engine.answer = [*served.engine.answer[:4], served.engine.answer[-1]]
    results = _check(served)
    assert {name for name in SCRIPTED if results[name].outcome == "fail"} == SCRIPTED


async def _silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a chat with a stream in which nothing is called, and anything else with a list of models."""
    models = b'{"data": [{"id": "tuned", "object": "model"}]}'
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}
    body = models if scope["method"] == "GET" else f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": body})


def test_what_is_not_streamed_fails(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.gateway.conftest.create_app", lambda *_: _silent)
    results = _check(served)
    assert {results[name].outcome for name in ("tools streaming", "continuous_usage_stats")} == {"fail"}


class _Emptied:
    """Answers every request on one path with the object that it would answer, emptied of all that it says."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def emptied(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if header[0] != b"content-length"]
                message = {**message, "headers": kept}
            elif message["type"] == "http.response.body" and message.get("body", b"").startswith(b"{"):
                message = {**message, "body": json.dumps(_empty(json.loads(message["body"]))).encode()}
            await send(message)

        await self._app(scope, receive, emptied if scope.get("path") == self._path else send)


def _empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _empty(inner) for key, inner in value.items() if key in ("error", "message")}
    return value


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/responses", {"responses", "previous_response_id"}),
        ("/v1/embeddings", {"embeddings", "embeddings base64"}),
        ("/v1/messages", {"messages", "count_tokens"}),
        ("/tokenize", {"tokenize"}),
        ("/openapi.json", {"openapi"}),
        (
            "/v1/completions",
            {
                "echo", "completion logprobs", "several prompts", "token prompts", "prompt_logprobs",
                "return_token_ids",
            },
        ),
        ("/v1/chat/completions", {"developer role", "content parts", "continue_final_message"}),
    ],
)  # fmt: skip
def test_an_answer_without_content_fails(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, path: str, names: set[str]
) -> None:
    create = _app.create_app
    monkeypatch.setattr("tests.gateway.conftest.create_app", lambda *arguments: _Emptied(create(*arguments), path))
    results = _check(served)
    assert {name for name in names if results[name].outcome == "fail"} == names
