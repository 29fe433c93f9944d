"""OpenAI's Python client: chat, streams, tools, structured output, responses, embeddings, errors, adapters."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

TOOL: openai.types.chat.ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
TICKET = "I was charged twice for order 12345, please refund one of the payments."
ASK: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": TICKET}]
WEATHER: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "The weather in Oslo?"}]


class Number(pydantic.BaseModel):
    """Few documents satisfy it, so that a small model cannot ramble."""

    even: bool
    size: Literal["small", "large"]


@pytest.fixture(scope="module")
def client(real: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def script(scripted: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_base_and_adapter_answer_each_in_its_way(client: openai.OpenAI) -> None:
    """chat: base and adapter"""
    assert [model.id for model in client.models.list()][:2] == ["demo", "tickets"]
    texts = []
    for model in ("demo", "tickets"):
        answer = client.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=40)
        texts.append(answer.choices[0].message.content or "")
    assert texts[0] != texts[1]
    assert json.loads(texts[1])["category"] == "billing"
    with pytest.raises(json.JSONDecodeError):
        json.loads(texts[0])


def test_a_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    """chat: streaming with usage"""
    whole = client.chat.completions.create(model="demo", messages=ASK, temperature=0, max_tokens=20)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=ASK, temperature=0, max_tokens=20, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 20
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_a_document_is_parsed(client: openai.OpenAI) -> None:
    """chat: .parse() of a pydantic model"""
    parsed = client.chat.completions.parse(
        model="demo", messages=[{"role": "user", "content": "Describe eight."}], response_format=Number, temperature=0,
        max_tokens=64,
    )  # fmt: skip
    assert isinstance(parsed.choices[0].message.parsed, Number)


def test_a_required_tool_is_called(client: openai.OpenAI) -> None:
    """tools: required and named, enforced on a model of 135M"""
    choices: list[openai.types.chat.ChatCompletionToolChoiceOptionParam] = [
        "required",
        {"type": "function", "function": {"name": "get_weather"}},
    ]
    for choice in choices:
        answer = client.chat.completions.create(
            model="tickets", messages=WEATHER, tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=64
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_a_tool_is_called_and_its_result_used(script: openai.OpenAI) -> None:
    """tools: auto, whole and streamed, and the result sent back"""
    whole = script.chat.completions.create(model="tuned", messages=WEATHER, tools=[TOOL]).choices[0].message
    parsed = script.chat.completions.parse(model="tuned", messages=WEATHER, tools=[TOOL]).choices[0].message
    with script.chat.completions.stream(model="tuned", messages=WEATHER, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0].message
    assert kinds.count("tool_calls.function.arguments.delta") > 5
    for message in (whole, parsed, streamed):
        (call,) = message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Oslo"}
        result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
        # The client sends back what it made of an answer with it, in whatever form it is given.
        for given in (message, message.to_dict(), message.model_dump()):
            messages: list[Any] = [*WEATHER, given, result]
            final = script.chat.completions.create(model="tuned", messages=messages, tools=[TOOL])
            assert final.choices[0].message.content == "It is 21 degrees in Oslo."


def test_responses_hold_a_conversation(client: openai.OpenAI) -> None:
    """responses: stored, gone on from, streamed, parsed"""
    first = client.responses.create(model="demo", input="Hi", temperature=0, max_output_tokens=8)
    second = client.responses.create(
        model="demo", input="Go on.", previous_response_id=first.id, temperature=0, max_output_tokens=8
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens >= 16
    with client.responses.stream(model="demo", input="Hi", temperature=0, max_output_tokens=8) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == first.output_text
    parsed = client.responses.parse(
        model="demo", input="Describe eight.", text_format=Number, temperature=0, max_output_tokens=64
    )
    assert isinstance(parsed.output_parsed, Number)


def test_a_response_calls_a_tool(script: openai.OpenAI) -> None:
    """responses: a function called, its output sent back"""
    tools: list[openai.types.responses.ToolParam] = [{"type": "function", **TOOL["function"]}]  # type: ignore[typeddict-item]
    first = script.responses.create(model="tuned", input="The weather in Oslo?", tools=tools)
    (call,) = [item for item in first.output if item.type == "function_call"]
    output: openai.types.responses.ResponseInputParam = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    ]
    final = script.responses.create(model="tuned", input=output, previous_response_id=first.id, tools=tools)
    assert final.output_text == "It is 21 degrees in Oslo."
    parsed = script.responses.parse(model="tuned", input="The weather in Oslo?", tools=tools)
    for response in (first, parsed):
        for given in (response.output, [item.model_dump() for item in response.output]):
            items: list[Any] = [*given, {**output[0], "call_id": response.output[-1].call_id}]  # type: ignore[union-attr]
            answer = script.responses.create(model="tuned", input=items, tools=tools)
            assert answer.output_text == "It is 21 degrees in Oslo."


def test_embeddings_are_of_base_and_adapter(client: openai.OpenAI) -> None:
    """embeddings: floats (the client asks for base64), base and adapter"""
    base, adapter = (
        client.embeddings.create(model=model, input=["Hello", "Good-bye"]).data for model in ("demo", "tickets")
    )
    for vectors in (base, adapter):
        assert [len(each.embedding) for each in vectors] == [576, 576]
        assert sum(value * value for value in vectors[0].embedding) == pytest.approx(1, abs=1e-3)
    assert base[0].embedding != adapter[0].embedding


def test_completions_with_logprobs(client: openai.OpenAI) -> None:
    """completions: several prompts, echo, logprobs"""
    answer = client.completions.create(
        model="demo", prompt=["One two", "A b"], echo=True, logprobs=2, max_tokens=3, temperature=0
    )
    for choice, prompt in zip(answer.choices, ("One two", "A b"), strict=True):
        assert choice.text.startswith(prompt)
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or []) == len(choice.logprobs.token_logprobs or [])


def test_an_adapter_comes_and_goes(client: openai.OpenAI) -> None:
    """adapters loaded and unloaded while others are served"""
    load = {"lora_name": "late", "lora_path": "tickets"}
    client.post("/load_lora_adapter", body=load, cast_to=str)
    for model in ("tickets", "late"):
        answer = client.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=40)
        assert json.loads(answer.choices[0].message.content or "")["category"] == "billing"
    client.post("/unload_lora_adapter", body={"lora_name": "late"}, cast_to=str)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="late", messages=ASK)


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    """errors: unknown model, wrong value, unknown field"""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=ASK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=ASK, n=10**9)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="demo", messages=ASK, extra_body={"bananas": 1})
    assert unknown.value.param == "bananas"
