"""Protects tools and thoughts on every API: what the model sees, what it must call, and how each API says it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import END, FakeEngine, chat_body, make_served, named_events, sse_events, write_tokenizer
from tests.gateway.published import problems
from tuneserve.gateway import ServedModel, create_app

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
HERMES = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role + ':' + (message.content or '') }}"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
FUNCTION: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SAID = f"<think>Hm, weather.</think>Let me see.\n{CALL}\n{CALL}"
BROKEN = '<tool_call>{"name": "weather", "arguments": {"city": "Os'
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def served(tmp_path: Path) -> ServedModel:
    served = make_served(write_tokenizer(tmp_path, HERMES))
    assert isinstance(served.engine, FakeEngine)
    served.engine.answer = served.tokenizer.encode(SAID + END, add_special_tokens=False)
    served.engine.context_length = 2048
    return served


@pytest.fixture
async def client(served: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        yield client


async def _post(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_thoughts_words_and_calls_are_told_apart(client: httpx.AsyncClient) -> None:
    answer = await _post(client, CHAT, chat_body(tools=TOOLS))
    choice = answer["choices"][0]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"].strip()) == ("Hm, weather.", "Let me see.")
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [{"city": "Oslo"}] * 2
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < 40
    assert problems("openai", "CreateChatCompletionResponse", answer) == []


async def test_a_stream_tells_the_same(client: httpx.AsyncClient) -> None:
    whole = (await _post(client, CHAT, chat_body(tools=TOOLS)))["choices"][0]["message"]
    events = sse_events((await client.post(CHAT, json=chat_body(tools=TOOLS, stream=True))).text)[:-1]
    assert [problems("openai", "CreateChatCompletionStreamResponse", event) for event in events] == [[]] * len(events)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == whole["reasoning_content"]
    calls: dict[int, dict[str, str]] = {}
    pieces = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert len(pieces) > 20, "arguments come as they are generated"
    assert [piece["index"] for piece in pieces if "id" in piece] == [0, 1]
    for delta in deltas:
        for call in delta.get("tool_calls", []):
            found = calls.setdefault(call["index"], {"name": "", "arguments": ""})
            for name in found:
                found[name] += call["function"].get(name, "")
    assert list(calls.values()) == [call["function"] for call in whole["tool_calls"]]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_the_model_sees_the_tools_unless_it_may_call_none(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    await _post(client, CHAT, chat_body(tools=TOOLS))
    assert '"city"' in served.tokenizer.decode(engine.prompt)
    answer = await _post(client, CHAT, chat_body(tools=TOOLS, tool_choice="none"))
    assert '"city"' not in served.tokenizer.decode(engine.prompt)
    assert answer["choices"][0]["message"]["content"].endswith(CALL)
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_call_that_must_be_made_is_enforced(client: httpx.AsyncClient, engine: FakeEngine, choice: Any) -> None:
    await _post(client, CHAT, chat_body(tools=TOOLS, tool_choice=choice))
    grammar = engine.requests[0].params.grammar
    assert grammar is not None
    assert grammar.kind == "lark"
    assert "weather" in grammar.text
    await _post(client, CHAT, chat_body(tools=TOOLS))
    assert engine.requests[1].params.grammar is None
    engine.lacks = ("grammar:lark",)
    refused = await client.post(CHAT, json=chat_body(tools=TOOLS, tool_choice=choice))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


async def test_a_function_may_be_called_like_a_choice(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("auto", "other")]
    choice = {"type": "function", "function": {"name": "auto"}}
    await _post(client, CHAT, chat_body(tools=tools, tool_choice=choice))
    grammar = engine.requests[0].params.grammar
    assert grammar is not None
    assert "auto" in grammar.text
    assert "other" not in grammar.text


async def test_calls_and_results_go_back_to_the_model(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    await _post(client, CHAT, chat_body(messages=messages, tools=TOOLS))
    text = served.tokenizer.decode(engine.prompt)
    assert 'assistant:<think>Hm</think><tool_call>weather{"city": "Oslo"}</tool_call>tool:42' in text


async def test_what_a_client_made_of_an_answer_is_not_shown_to_the_model(tmp_path: Path) -> None:
    served = make_served(write_tokenizer(tmp_path, "{{ messages | tojson }}"))
    assert isinstance(served.engine, FakeEngine)
    served.engine.context_length = 2048
    call: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    plain: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "tool_calls": [call]},
    ]
    function = {**call["function"], "parsed_arguments": {"x": 1}}
    made = {**plain[1], "parsed": {"x": 1}, "tool_calls": [{**call, "index": 0, "function": function}]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        await _post(client, CHAT, chat_body(messages=plain))
        await _post(client, CHAT, chat_body(messages=[plain[0], made]))
    first, second = served.engine.requests
    assert first.prompt_ids == second.prompt_ids


async def test_responses_have_items_for_each(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    body = {"model": "tuned", "input": "Hi", "tools": [{"type": "function", **FUNCTION, "strict": True}]}
    answer = await _post(client, "/v1/responses", body)
    assert problems("openai", "Response", answer) == []
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert answer["output"][0]["content"][0]["text"] == "Hm, weather."
    assert json.loads(answer["output"][2]["arguments"]) == {"city": "Oslo"}
    events = named_events((await client.post("/v1/responses", json={**body, "stream": True})).text)
    assert [problems("openai", "ResponseStreamEvent", data) for _, data in events] == [[]] * len(events)
    final = events[-1][1]["response"]["output"]
    assert [item["type"] for item in final] == [item["type"] for item in answer["output"]]
    assert [item.get("arguments") for item in final] == [item.get("arguments") for item in answer["output"]]
    done = [data["item"] for name, data in events if name == "response.output_item.done"]
    assert done == final
    fragments = [d["delta"] for name, d in events if name == "response.function_call_arguments.delta"]
    assert "".join(fragments) == 2 * answer["output"][2]["arguments"]
    assert len(fragments) > 10
    result = {"type": "function_call_output", "call_id": answer["output"][2]["call_id"], "output": "42"}
    await _post(client, "/v1/responses", {**body, "input": [result], "previous_response_id": answer["id"]})
    text = served.tokenizer.decode(engine.prompt)
    assert 'Let me see.\n<think>Hm, weather.</think><tool_call>weather{"city": "Oslo"}</tool_call>' in text
    assert text.endswith("tool:42")
    again = await _post(
        client, "/v1/responses", {**body, "input": [{"role": "user", "content": "Hi"}, *answer["output"]]}
    )
    assert again["status"] == "completed"


@pytest.mark.parametrize("arguments", ["{", "[]", "7"])
async def test_arguments_that_are_no_object_are_named(client: httpx.AsyncClient, arguments: str) -> None:
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    response = await client.post("/v1/responses", json={"model": "tuned", "input": [item]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input[0].arguments")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    response = await client.post(CHAT, json=chat_body(messages=[{"role": "assistant", "tool_calls": [call]}]))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].tool_calls[0].function.arguments"


async def test_messages_have_blocks_for_each(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body: dict[str, Any] = {
        "model": "tuned", "max_tokens": 500, "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "weather", "description": "d", "input_schema": FUNCTION["parameters"]}],
    }  # fmt: skip
    answer = await _post(client, "/v1/messages", body)
    assert problems("anthropic", "Message", answer) == []
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert answer["content"][2]["input"] == {"city": "Oslo"}
    assert answer["stop_reason"] == "tool_use"
    events = named_events((await client.post("/v1/messages", json={**body, "stream": True})).text)
    assert [problems("anthropic", "MessageStreamEvent", data) for _, data in events] == [[]] * len(events)
    starts = [data["content_block"]["type"] for name, data in events if name == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    assert sum(name == "content_block_stop" for name, _ in events) == 4
    partial: dict[int, list[str]] = {}
    for name, data in events:
        if name == "content_block_delta" and data["delta"]["type"] == "input_json_delta":
            partial.setdefault(data["index"], []).append(data["delta"]["partial_json"])
    assert {index: json.loads("".join(pieces)) for index, pieces in partial.items()} == {
        index: {"city": "Oslo"} for index in (2, 3)
    }
    assert min(map(len, partial.values())) > 5
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}):
        await _post(client, "/v1/messages", {**body, "tool_choice": choice})
        assert engine.requests[-1].params.grammar is not None


async def test_a_call_that_breaks_off_is_told_as_far_as_it_came(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    engine.answer = served.tokenizer.encode(BROKEN, add_special_tokens=False)
    body = chat_body(tools=TOOLS, max_tokens=len(engine.answer))
    choice = (await _post(client, CHAT, body))["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Os'}
    assert choice["finish_reason"] == "length"
    asked = {"model": "tuned", "max_tokens": len(engine.answer), "messages": [{"role": "user", "content": "Hi"}]}
    tools = [{"name": "weather", "input_schema": FUNCTION["parameters"]}]
    (block,) = (await _post(client, "/v1/messages", {**asked, "tools": tools}))["content"]
    assert block["input"] == {"invalid_json": '{"city": "Os'}
    body = {"model": "tuned", "input": "Hi", "max_output_tokens": len(engine.answer)}
    answer = await _post(client, "/v1/responses", {**body, "tools": [{"type": "function", **FUNCTION}]})
    assert (answer["status"], answer["output"][0]["arguments"]) == ("incomplete", '{"city": "Os')
    again = await _post(client, "/v1/responses", {**body, "input": "Go on", "previous_response_id": answer["id"]})
    assert again["previous_response_id"] == answer["id"]


OTHER = {"type": "function", "function": {"name": "other"}}


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_of_the_allowed_tools_the_model_sees_those_alone(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel, mode: str
) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED]}}
    await _post(client, CHAT, chat_body(tools=[*TOOLS, OTHER], tool_choice=choice))
    body: dict[str, Any] = {
        "model": "tuned",
        "input": "Hi",
        "tools": [{"type": "function", **FUNCTION}, {"type": "function", "name": "other", "parameters": {}}],
        "tool_choice": {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "weather"}]},
    }
    answer = await _post(client, "/v1/responses", body)
    assert problems("openai", "Response", answer) == []
    assert answer["tool_choice"] == body["tool_choice"]
    for request in engine.requests:
        text = served.tokenizer.decode(request.prompt_ids)
        assert ("weather" in text, "other" in text) == (True, False)
        assert (request.params.grammar is not None) == (mode == "required")


async def test_an_output_with_a_form_is_all_content(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await _post(client, CHAT, chat_body(response_format={"type": "json_object"}))
    assert answer["choices"][0]["message"]["content"] == SAID
    refused = await client.post(CHAT, json=chat_body(response_format={"type": "json_object"}, tools=TOOLS))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    await _post(client, CHAT, chat_body(guided_regex="a", tools=TOOLS, tool_choice="none"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom", "function": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": TOOLS * 2}, "tools[1].function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
            {"type": "function", "function": {"name": "x"}}]}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
         "tool_choice.allowed_tools.tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [
            {"id": "c", "function": {"name": "f", "arguments": "{}"}}]}]}, "messages[0].tool_calls"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_tools_is_named(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(CHAT, json=chat_body(**fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "tool", "param"),
    [
        ("/v1/responses", {"type": "function", "name": "f", "parameters": {"type": "array"}}, "tools[0].parameters"),
        ("/v1/messages", {"name": "f", "input_schema": {"required": 7}}, "tools[0].input_schema.required"),
        ("/v1/messages/count_tokens", {"name": "f", "input_schema": {"required": 7}}, "tools[0].input_schema.required"),
    ],
)
async def test_a_tool_is_named_as_the_request_named_it(
    client: httpx.AsyncClient, path: str, tool: dict[str, Any], param: str
) -> None:
    body = {"model": "tuned", "tools": [tool]}
    asked: dict[str, Any] = {"input": "Hi"} if path == "/v1/responses" else {"messages": chat_body()["messages"]}
    limit = {"max_tokens": 5} if path == "/v1/messages" else {}
    response = await client.post(path, json={**body, **asked, **limit})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.get("param", param) == param
    assert path == "/v1/responses" or f"'{param}'" in error["message"]


async def test_a_model_without_a_known_way_of_calling_refuses_tools(tokenizer_dir: Path) -> None:
    app = create_app(make_served(tokenizer_dir))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        response = await client.post(CHAT, json=chat_body(tools=TOOLS))
        assert (response.status_code, response.json()["error"]["param"]) == (400, "tools")
        await _post(client, CHAT, chat_body(tools=TOOLS, tool_choice="none"))


async def test_tokens_are_counted_with_the_tools(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await _post(client, CHAT, chat_body(tools=TOOLS))
    counted = await _post(client, "/tokenize", {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS})
    assert counted["tokens"] == engine.prompt


async def test_mistrals_ids_are_as_its_templates_want_them(tmp_path: Path) -> None:
    served = make_served(write_tokenizer(tmp_path, "{{ tools }}[TOOL_CALLS]{{ messages[0].content }}"))
    assert isinstance(served.engine, FakeEngine)
    text = '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]'
    served.engine.answer = served.tokenizer.encode(text + END, add_special_tokens=False)
    served.engine.context_length = 2048
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        answer = await _post(client, CHAT, chat_body(tools=TOOLS))
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()
