"""Protects what only a real server shows: streaming as it happens, clients that leave, and OpenAI's own client."""

import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, running_server
from tuneserve.gateway import ServedModel

CHAT = "/v1/chat/completions"
WAIT = 20


@pytest.fixture
def server(served: ServedModel) -> Iterator[str]:
    with running_server(served) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def _open(url: str, body: object) -> socket.socket:
    """Send a request and leave its answer unread."""
    parts = urlsplit(url)
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection((parts.hostname, parts.port), timeout=WAIT)
    connection.sendall(head.encode() + content)
    return connection


def test_text_arrives_while_it_is_generated(server: str, engine: FakeEngine) -> None:
    engine.hold_after = 5
    body = chat_body(stream=True)
    with httpx.stream("POST", server + CHAT, json=body, timeout=WAIT) as response:
        text, released = "", False
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
            if text == "Hello" and not released:
                assert engine.holding.acquire(timeout=WAIT)
                released = True
                engine.release()
    assert released
    assert text == "Hello, wörld!"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold_after", [0, 3])
def test_a_client_that_leaves_cancels_its_sequence(
    server: str, engine: FakeEngine, stream: bool, hold_after: int
) -> None:
    engine.hold_after = hold_after
    with _open(server, chat_body(stream=stream)):
        assert engine.holding.acquire(timeout=WAIT)
        assert not engine.cancelled
    assert engine.has_cancelled.acquire(timeout=WAIT)
    assert engine.cancelled == [engine.requests[0].id]
    metrics = httpx.get(f"{server}/metrics").text
    assert (
        f'http_requests_total{{handler="{CHAT}",method="POST",status="{200 if stream and hold_after else 499}"}} 1.0'
        in metrics
    )


def test_a_client_that_leaves_before_its_body_is_no_error(
    server: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(server)
    with socket.create_connection((parts.hostname, parts.port), timeout=WAIT) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert httpx.get(f"{server}/health").status_code == 200
    assert not caplog.records


def test_openai_client_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].message.content == "Hello, wörld!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15
    assert answer._request_id is not None
    again = client.chat.completions.create(
        model="tuned", messages=[{"role": "user", "content": "Hi"}, answer.choices[0].message.to_dict()]  # type: ignore[list-item]
    )  # fmt: skip
    assert again.choices


def test_openai_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": "Hi"}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"top_k": 5, "min_p": 0.1},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, wörld!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 15


def test_openai_client_completes_and_lists(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tuned", prompt=["a", "b"], max_tokens=3)
    assert [choice.text for choice in answer.choices] == ["Hel", "Hel"]
    chunks = client.completions.create(model="tuned", prompt="a", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hel"
    assert [model.id for model in client.models.list()] == ["tuned"]
    assert client.models.retrieve("tuned").id == "tuned"


def test_openai_client_raises_its_own_errors(client: openai.OpenAI, engine: FakeEngine) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="other", messages=messages)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tuned", messages=messages, n=129)
    assert refused.value.param == "n"
    engine.fail_after = 3
    with pytest.raises(openai.APIError, match="engine failed"):
        list(client.chat.completions.create(model="tuned", messages=messages, stream=True))


def test_many_at_once(server: str, engine: FakeEngine) -> None:
    engine.hold_after = 2
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(server + CHAT, json=chat_body(), timeout=WAIT).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert engine.holding.acquire(timeout=WAIT)
    engine.release()
    for thread in threads:
        thread.join()
    assert answers == [200] * 12
