"""Protects Anthropic's API: the conversation that reaches the engine, blocks and events, and errors in its form."""

from typing import Any

import httpx
import pytest

from tests.gateway.conftest import END, START, FakeEngine, named_events
from tuneserve.gateway import ServedModel

pytestmark = pytest.mark.anyio
URL = "/v1/messages"


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "tuned", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, **fields}


async def test_a_message_has_blocks_and_a_reason(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (await client.post(URL, json=_body(top_k=5, temperature=0.5))).json()
    assert answer["content"] == [{"type": "text", "text": "Hello, wörld!", "citations": None}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (len(engine.prompt), 15)
    assert (engine.requests[0].params.top_k, engine.requests[0].params.temperature) == (5, 0.5)


@pytest.mark.parametrize(
    ("fields", "reason", "sequence", "text"),
    [
        ({"max_tokens": 4}, "max_tokens", None, "Hell"),
        ({"stop_sequences": ["x", "o,"]}, "stop_sequence", "o,", "Hell"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_why_it_ended(
    client: httpx.AsyncClient, stream: bool, fields: dict[str, Any], reason: str, sequence: str | None, text: str
) -> None:
    response = await client.post(URL, json=_body(**fields, stream=stream))
    if stream:
        events = named_events(response.text)
        found = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
        end = next(data["delta"] for name, data in events if name == "message_delta")
    else:
        end = response.json()
        found = end["content"][0]["text"]
    assert (end["stop_reason"], end["stop_sequence"], found) == (reason, sequence, text)


async def test_a_stream_opens_fills_and_closes_a_block(client: httpx.AsyncClient) -> None:
    names = [name for name, _ in named_events((await client.post(URL, json=_body(stream=True))).text)]
    deltas = names.count("content_block_delta")
    assert names == [
        "message_start", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip


async def test_blocks_become_messages(client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
                {"type": "text", "text": "so?"},
            ],
        },
        {"role": "assistant", "content": "It is"},
    ]
    system = [{"type": "text", "text": "S"}]
    response = await client.post(URL, json=_body(messages=messages, system=system))
    assert response.status_code == 200, response.text
    assert served.tokenizer.decode(engine.prompt, skip_special_tokens=False) == (
        f"{START}system\nS{END}\n{START}user\na{END}\n{START}assistant\nb{END}\n{START}tool\n42{END}\n"
        f"{START}user\nso?{END}\n{START}assistant\nIt is"
    )
    body = {"model": "tuned", "messages": messages, "system": system}
    counted = (await client.post(f"{URL}/count_tokens", json=body)).json()
    assert counted == {"input_tokens": len(engine.prompt)}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": []}], "system": 7}, "system"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"thinking": {"type": "adaptive"}}, "thinking"),
        ({"output_config": {"effort": "max"}}, "output_config.effort"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"bananas": 1}, "bananas"),
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_named_in_anthropics_form(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], named: str
) -> None:
    response = await client.post(URL, json=_body(**fields))
    assert response.status_code == 400, response.text
    answer = response.json()
    assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    assert f"'{named}'" in answer["error"]["message"]
    assert not engine.requests


async def test_what_asks_for_nothing_of_a_tool_is_taken(client: httpx.AsyncClient) -> None:
    tool = {"name": "f", "input_schema": {}, "eager_input_streaming": True, "allowed_callers": ["direct"]}
    body = _body(tools=[{**tool, "defer_loading": False, "input_examples": []}], tool_choice={"type": "none"})
    assert (await client.post(URL, json=body)).status_code == 200
    body["tools"][0]["input_examples"] = [{}]
    refused = (await client.post(URL, json=body)).json()
    assert "'tools[0].input_examples'" in refused["error"]["message"]


async def test_thinking_can_be_left_out(client: httpx.AsyncClient) -> None:
    assert (await client.post(URL, json=_body(thinking={"type": "disabled"}))).status_code == 200


async def test_a_system_turn_is_one_of_the_conversation(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    assert (await client.post(URL, json=_body(messages=turns))).status_code == 200
    assert served.tokenizer.decode(engine.prompt).find("Be brief.") > served.tokenizer.decode(engine.prompt).find("Hi")


@pytest.mark.parametrize("fields", [{"output_config": {"effort": "low"}}, {"thinking": {"type": "adaptive"}}])
async def test_counting_refuses_what_answering_does(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    refused = await client.post(URL, json=_body(**fields))
    body = {name: value for name, value in _body(**fields).items() if name != "max_tokens"}
    counted = await client.post(f"{URL}/count_tokens", json=body)
    assert (refused.status_code, refused.json()) == (400, counted.json())


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json=_body(model="other"))
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_failing_engine_is_overloaded_in_anthropics_words(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = 0
    response = await client.post(URL, json=_body(stream=True))
    assert (response.status_code, response.json()["error"]["type"]) == (503, "overloaded_error")
