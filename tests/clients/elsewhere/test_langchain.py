"""langchain-openai: chat and streams, tools, structured output, embeddings, log-probabilities."""

from typing import Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Number(BaseModel):
    """A number's kind."""

    even: bool
    size: Literal["small", "large"]


@tool
def get_weather(city: Literal["Oslo", "Rome"]) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


@pytest.fixture
def model(real):
    return ChatOpenAI(model="tickets", base_url=f"{real}/v1", api_key="none", temperature=0, max_tokens=64)


def test_it_chats_and_streams(model):
    """chat: whole, streamed, batched, with usage and log-probabilities"""
    whole = model.invoke("I was charged twice.", logprobs=True, top_logprobs=2)
    assert '"billing"' in whole.content
    assert whole.usage_metadata["output_tokens"] > 5
    assert whole.response_metadata["logprobs"]["content"]
    chunks = list(model.stream("I was charged twice."))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert [each.content for each in model.batch(["I was charged twice."] * 3)] == [whole.content] * 3


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_output_is_structured(model, method):
    """structured output: json_schema and function_calling"""
    assert isinstance(model.with_structured_output(Number, method=method).invoke("Describe eight."), Number)


def test_a_tool_is_called_and_its_result_used(scripted):
    """tools: whole and streamed, and the result sent back"""
    model = ChatOpenAI(model="tuned", base_url=f"{scripted}/v1", api_key="none").bind_tools([get_weather])
    question = HumanMessage("The weather in Oslo?")
    streamed = None
    for chunk in model.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    for answer in (model.invoke([question]), streamed):
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
        result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
        turn = AIMessage(content=answer.content, tool_calls=answer.tool_calls)
        assert model.invoke([question, turn, result]).content == "It is 21 degrees in Oslo."


def test_it_uses_responses(scripted):
    """responses: chat and tools with use_responses_api"""
    model = ChatOpenAI(model="tuned", base_url=f"{scripted}/v1", api_key="none", use_responses_api=True)
    assert model.invoke("Hi").text == "Hello, wörld!"
    bound, question = model.bind_tools([get_weather]), HumanMessage("The weather in Oslo?")
    answer = bound.invoke([question])
    (call,) = answer.tool_calls
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert bound.invoke([question, answer, result]).text == "It is 21 degrees in Oslo."


def test_it_embeds(real):
    """embeddings of texts (tokens made by the client are not)"""
    embeddings = OpenAIEmbeddings(model="demo", base_url=f"{real}/v1", api_key="none", check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["Hello", "Good-bye"])
    assert len(first) == len(second) == 576
    assert first != second
