"""instructor: a typed answer, by tools and by JSON schema, whole, partial and as a list."""

from typing import Literal

import anthropic
import instructor
import openai
import pytest
from pydantic import BaseModel


class Number(BaseModel):
    """A number's kind."""

    even: bool
    size: Literal["small", "large"]


ASK = {"model": "tickets", "messages": [{"role": "user", "content": "Describe eight."}], "temperature": 0}


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT])
def test_the_answer_is_typed(real, mode):
    """OpenAI: tools, strict tools, JSON schema"""
    client = instructor.from_openai(openai.OpenAI(base_url=f"{real}/v1", api_key="none"), mode=mode)
    number = client.chat.completions.create(response_model=Number, max_tokens=80, **ASK)
    assert isinstance(number, Number)


def test_the_answer_comes_in_parts(real):
    """OpenAI: partial answers from a stream of a tool's arguments"""
    client = instructor.from_openai(openai.OpenAI(base_url=f"{real}/v1", api_key="none"))
    parts = list(client.chat.completions.create_partial(response_model=Number, max_tokens=80, **ASK))
    assert parts[-1].size in ("small", "large")


def test_anthropics_client_gets_a_typed_answer(real):
    """Anthropic: tools"""
    client = instructor.from_anthropic(anthropic.Anthropic(base_url=real, api_key="none"))
    number = client.chat.completions.create(
        response_model=Number, max_tokens=80, model="tickets", messages=ASK["messages"],
        extra_body={"temperature": 0},
    )  # fmt: skip
    assert isinstance(number, Number)
