"""pydantic-ai: agents with tools and typed output over chat, responses and messages."""

import asyncio
from typing import Literal

import anthropic
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Number(BaseModel):
    """A number's kind."""

    even: bool
    size: Literal["small", "large"]


def model_of(kind, url, name):
    if kind is AnthropicModel:
        # Its own client would be of the wrong httpx.
        client = anthropic.AsyncAnthropic(base_url=url, api_key="none")
        return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client))
    return kind(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


KINDS = pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel, AnthropicModel])


@KINDS
def test_an_agent_uses_a_tool(scripted, kind):
    """an agent with a tool, over each API"""
    agent = Agent(model_of(kind, scripted, "tuned"))

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"21 degrees in {city}"

    result = agent.run_sync("The weather in Oslo?")
    assert result.output == "It is 21 degrees in Oslo."
    assert result.usage.requests == 2


@KINDS
def test_an_agents_stream_uses_a_tool(scripted, kind):
    """an agent's stream, over each API"""
    agent = Agent(model_of(kind, scripted, "tuned"))

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"21 degrees in {city}"

    async def stream():
        async with agent.run_stream("The weather in Oslo?") as result:
            return await result.get_output()

    assert asyncio.run(stream()) == "It is 21 degrees in Oslo."


@KINDS
def test_output_is_typed_by_a_tool(real, kind):
    """typed output by a required tool, over each API"""
    agent = Agent(model_of(kind, real, "tickets"), output_type=Number, model_settings={"max_tokens": 80})
    assert isinstance(agent.run_sync("Describe eight.").output, Number)


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_output_is_typed_by_a_schema(real, kind):
    """typed output by a JSON schema, over chat and responses"""
    agent = Agent(model_of(kind, real, "tickets"), output_type=NativeOutput(Number), model_settings={"max_tokens": 80})
    assert isinstance(agent.run_sync("Describe eight.").output, Number)
