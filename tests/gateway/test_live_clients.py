"""Protects that the official clients of OpenAI and Anthropic understand every answer of a running server."""

from collections.abc import Iterator

import anthropic
import openai
import pytest

from tests.gateway.conftest import FakeEngine, running_server
from tuneserve.gateway import ServedModel

TEXT = "Hello, wörld!"
HI: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def server(served: ServedModel) -> Iterator[str]:
    with running_server(served) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(server: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server, api_key="none", max_retries=0) as client:
        yield client


def test_openai_client_gets_logprobs_and_samples(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tuned", messages=[{"role": "user", "content": "Hi"}], n=2, logprobs=True, top_logprobs=2
    )
    assert len(answer.choices) == 2
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].top_logprobs[0].token == "I"
    echoed = client.completions.create(model="tuned", prompt="ab", echo=True, logprobs=1, max_tokens=1)
    assert echoed.choices[0].logprobs is not None
    assert echoed.choices[0].logprobs.text_offset == [0, 1, 2]


def test_openai_client_holds_a_conversation_of_responses(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tuned", input="Hi", instructions="Be brief.")
    assert first.output_text == TEXT
    second = client.responses.create(
        model="tuned", input=[{"role": "user", "content": "More"}], previous_response_id=first.id
    )
    assert second.output_text == TEXT
    assert client.responses.retrieve(first.id).output_text == TEXT
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="tuned", input="Hi", previous_response_id=first.id)
    assert refused.value.param == "previous_response_id"


def test_openai_client_streams_a_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tuned", input="Hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == TEXT
    assert final.usage is not None
    assert final.usage.output_tokens == 15


def test_anthropic_client_gets_a_message(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="tuned", messages=HI, max_tokens=30, system="S", stop_sequences=["ld"])
    assert [block.text for block in message.content if block.type == "text"] == ["Hello, wör"]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "ld")
    assert (
        message.usage.input_tokens == claude.messages.count_tokens(model="tuned", messages=HI, system="S").input_tokens
    )


def test_anthropic_client_streams_a_message(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="tuned", messages=HI, max_tokens=30) as stream:
        assert "".join(stream.text_stream) == TEXT
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 15


def test_anthropic_client_raises_its_own_errors(claude: anthropic.Anthropic, engine: FakeEngine) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="other", messages=HI, max_tokens=3)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="tuned", messages=HI, max_tokens=1000)
    engine.fail_after = 3
    with (
        pytest.raises(anthropic.APIError, match="engine failed"),
        claude.messages.stream(model="tuned", messages=HI, max_tokens=30) as stream,
    ):
        stream.get_final_message()
