"""Anthropic's Python client: messages, streams, tools, token counts, errors."""

from collections.abc import Iterator

import anthropic
import pytest

HI: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Tell me of the sea and of its many ships."}]
GREEDY = {"temperature": 0}  # which the client no longer has as an argument
WEATHER: list[anthropic.types.MessageParam] = [{"role": "user", "content": "The weather in Oslo?"}]
TOOL: anthropic.types.ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(real: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=real, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def script(scripted: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=scripted, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_is_the_same_whole_and_streamed(client: anthropic.Anthropic) -> None:
    """messages: whole and streamed, with the tokens found in the cache"""
    whole = client.messages.create(model="demo", messages=HI, max_tokens=12, extra_body=GREEDY)
    with client.messages.stream(model="demo", messages=HI, max_tokens=12, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert [block.text for block in whole.content if block.type == "text"] == [text]
    assert final.stop_reason == whole.stop_reason == "max_tokens"
    counted = client.messages.count_tokens(model="demo", messages=HI).input_tokens
    for message in (whole, final):
        assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == counted
    assert final.usage.cache_read_input_tokens


def test_a_required_tool_is_called(client: anthropic.Anthropic) -> None:
    """tools: any and named, enforced on a model of 135M"""
    choices: list[anthropic.types.ToolChoiceParam] = [{"type": "any"}, {"type": "tool", "name": "get_weather"}]
    for choice in choices:
        message = client.messages.create(
            model="tickets", messages=WEATHER, tools=[TOOL], tool_choice=choice, max_tokens=64, extra_body=GREEDY
        )
        assert message.stop_reason == "tool_use"
        (call,) = [block for block in message.content if block.type == "tool_use"]
        assert call.input in ({"city": "Oslo"}, {"city": "Rome"})


def test_a_tool_is_called_and_its_result_used(script: anthropic.Anthropic) -> None:
    """tools: auto, streamed, and the result sent back"""
    with script.messages.stream(model="tuned", messages=WEATHER, tools=[TOOL], max_tokens=200) as stream:
        message = stream.get_final_message()
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert call.input == {"city": "Oslo"}
    messages: list[anthropic.types.MessageParam] = [
        *WEATHER,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}]},
    ]
    final = script.messages.create(model="tuned", messages=messages, tools=[TOOL], max_tokens=200)
    assert [block.text for block in final.content if block.type == "text"] == ["It is 21 degrees in Oslo."]


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    """errors: unknown model, too many tokens"""
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", messages=HI, max_tokens=3)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="demo", messages=HI, max_tokens=10_000)
