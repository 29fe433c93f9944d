"""Protects plain completions: every kind of prompt, OpenAI's default length, several prompts at once."""

from typing import Any

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, sse_events
from tuneserve.gateway import ServedModel

pytestmark = pytest.mark.anyio
URL = "/v1/completions"


def _body(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "tuned", "prompt": prompt, **fields}


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("Hi", [["H", "i"]]),
        (["Hi", "a"], [["H", "i"], ["a"]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
async def test_each_kind_of_prompt(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel, prompt: Any, ids: list[list[Any]]
) -> None:
    response = await client.post(URL, json=_body(prompt))
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "text_completion"
    expected = [
        [served.tokenizer.encode(each, add_special_tokens=False)[0] if isinstance(each, str) else each for each in row]
        for row in ids
    ]
    assert [request.prompt_ids for request in engine.requests] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(ids)))
    assert {choice["text"] for choice in answer["choices"]} == {"Hello, wörld!"}
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert answer["usage"]["completion_tokens"] == 15 * len(ids)


async def test_sixteen_tokens_unless_told(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.answer = [64] * 100
    answer = (await client.post(URL, json=_body("Hi"))).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"
    await client.post(URL, json=_body([1] * 250))
    assert engine.requests[-1].params.max_tokens == 6


async def test_a_stream_of_several_prompts_keeps_them_apart(client: httpx.AsyncClient) -> None:
    body = _body(["a", "b", "c"], stream=True, stream_options={"include_usage": True})
    events = sse_events((await client.post(URL, json=body)).text)
    assert events.pop() == "[DONE]"
    assert events.pop()["usage"]["completion_tokens"] == 45
    texts, reasons = ["", "", ""], []
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert texts == ["Hello, wörld!"] * 3
    assert reasons == ["stop"] * 3


async def test_one_failing_prompt_ends_and_cancels_the_others(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.hold_after = 2
    engine.broken_prompt = [9]
    response = await client.post(URL, json=_body([[1], [2], [9]]))
    assert response.status_code == 503
    assert len(engine.cancelled) == 2
