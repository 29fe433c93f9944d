"""Protects ``/v1/responses``: the conversation that reaches the engine, what is stored for whom, and for how long."""

from typing import Any

import httpx
import pytest

from tests.gateway.conftest import END, START, FakeEngine, named_events
from tuneserve.gateway import ServedModel
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway.responses._store import ResponseStore, Stored
from tuneserve.gateway.schemas import Message

pytestmark = pytest.mark.anyio
URL = "/v1/responses"


async def _create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(URL, json={"model": "tuned", "input": "Hi", **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _prompt(served: ServedModel, engine: FakeEngine) -> str:
    return served.tokenizer.decode(engine.prompt, skip_special_tokens=False)


async def test_a_text_is_answered_with_a_message(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    answer = await _create(client, instructions="Be brief.")
    assert answer["status"] == "completed"
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"][0]["text"] == "Hello, wörld!"
    assert answer["usage"]["output_tokens"] == 15
    assert _prompt(served, engine) == (f"{START}system\nBe brief.{END}\n{START}user\nHi{END}\n{START}assistant\n")


async def test_items_become_messages(client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel) -> None:
    items = [
        {"role": "developer", "content": "sys"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
    ]
    await _create(client, input=items)
    assert _prompt(served, engine) == (
        f"{START}system\nsys{END}\n{START}user\na{END}\n{START}assistant\nb{END}\n{START}tool\n42{END}\n"
        f"{START}assistant\n"
    )


async def test_a_response_can_be_gone_on_from_without_its_instructions(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    first = await _create(client, instructions="Be brief.", store=True)
    second = await _create(client, input="More", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert _prompt(served, engine) == (
        f"{START}user\nHi{END}\n{START}assistant\nHello, wörld!{END}\n{START}user\nMore{END}\n{START}assistant\n"
    )
    third = await _create(client, input="Yet more", previous_response_id=second["id"])
    assert _prompt(served, engine).count("Hello") == 2
    assert (await client.get(f"{URL}/{third['id']}")).json() == third
    assert (await client.delete(f"{URL}/{third['id']}")).json()["deleted"] is True
    assert (await client.get(f"{URL}/{third['id']}")).status_code == 404
    assert (await client.delete(f"{URL}/{third['id']}")).status_code == 404


async def test_what_is_not_stored_cannot_be_gone_on_from(client: httpx.AsyncClient) -> None:
    for name in ((await _create(client, store=False))["id"], "resp_unknown", "x\x00"):
        response = await client.post(URL, json={"model": "tuned", "input": "Hi", "previous_response_id": name})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "previous_response_id"


async def test_a_response_is_only_for_who_asked(client: httpx.AsyncClient) -> None:
    name = (await _create(client))["id"]
    other = {"Authorization": "Bearer another"}
    assert (await client.get(f"{URL}/{name}", headers=other)).status_code == 404
    assert (await client.delete(f"{URL}/{name}", headers=other)).status_code == 404
    body = {"model": "tuned", "input": "Hi", "previous_response_id": name}
    assert (await client.post(URL, json=body, headers=other)).status_code == 400
    assert (await client.get(f"{URL}/{name}")).status_code == 200


async def test_a_streamed_response_is_stored_and_numbered(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"model": "tuned", "input": "Hi", "stream": True})
    events = named_events(response.text)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    names = [name for name, _ in events]
    assert names[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert names[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert set(names[4:-4]) == {"response.output_text.delta"}
    assert "".join(data["delta"] for name, data in events if name.endswith("delta")) == "Hello, wörld!"
    final = events[-1][1]["response"]
    assert (await client.get(f"{URL}/{final['id']}")).json() == final


async def test_too_few_tokens_leave_a_response_incomplete(client: httpx.AsyncClient) -> None:
    answer = await _create(client, max_output_tokens=3)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    body = {"model": "tuned", "input": "Hi", "stream": True, "max_output_tokens": 3}
    name, data = named_events((await client.post(URL, json=body)).text)[-1]
    assert (name, data["response"]["status"]) == ("response.incomplete", "incomplete")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": "x" * 300}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}, "input[0].call_id"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream_options": {}}, "stream_options"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ],
)
async def test_what_cannot_be_honoured_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(URL, json={"model": "tuned", "input": "Hi", **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param, error
    assert not engine.requests


async def test_a_form_reaches_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    schema = {"type": "object"}
    await _create(client, text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    grammar = engine.requests[0].params.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == ("json_schema", '{"type":"object"}')


def test_the_store_is_bounded_in_number_and_bytes() -> None:
    def stored(name: str, size: int = 1) -> Stored:
        return Stored({"id": name}, (Message(role="user", content="x" * size),), b"me")

    store = ResponseStore(max_responses=2, max_bytes=5_000)
    for name in ("a", "b"):
        store.put(stored(name))
    store.get("a", b"me")
    store.put(stored("c"))
    with pytest.raises(ApiError):
        store.get("b", b"me")
    store = ResponseStore(max_responses=100, max_bytes=5_000)
    for name in ("a", "b", "c"):
        store.put(stored(name, 2_000))
    with pytest.raises(ApiError):
        store.get("a", b"me")
    store.get("b", b"me")
    store.delete("c", b"me")
    store.put(stored("d", 2_000))
    store.get("b", b"me")
    store.put(stored("e", 6_000))
    for name in ("b", "d", "e"):
        with pytest.raises(ApiError):
            store.get(name, b"me")
