"""Protects the client: what it sends, what it makes of answers, and one sentence for each way they can go wrong."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tuneserve.client import ApiError, OpenAIClient, ProtocolError, TransportError
from tuneserve.errors import InputError, TuneserveError

Serve = Callable[..., Any]
HELLO = [{"role": "user", "content": "hello"}]


def take_request(connection: socket.socket) -> None:
    """Read a request to its end, for closing on unread bytes would take the answer away from the client."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    head, _, body = head.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """Answer one connection after the other with these bytes and close it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                with listener.accept()[0] as connection:
                    take_request(connection)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def http(body: bytes, kind: str = "application/json", status: str = "200 OK", *more: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *more])
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def one_sentence(error: TuneserveError) -> str:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert ";" in text, "it names a remedy"
    return text


def test_everything_works_on_a_server_that_is_right(fake_server: Serve) -> None:
    with OpenAIClient(fake_server().url) as client:
        assert [model.id for model in client.models()] == ["fake-1"]
        answer = client.chat(HELLO, model="fake-1", temperature=0, max_tokens=2)
        assert (answer.text, answer.choices[0].finish_reason) == ("one two", "length")
        assert answer.usage is not None
        assert answer.usage.total_tokens == 11
        chunks = list(client.chat_stream(HELLO, model="fake-1", temperature=0, max_tokens=2))
        assert [choice.delta.content for chunk in chunks for choice in chunk.choices] == ["", "one", " two", None]
        assert client.completion("zero", model="fake-1", temperature=0, max_tokens=1).text == "one"
        pieces = list(client.completion_stream("zero", model="fake-1", temperature=0, max_tokens=2))
        assert "".join(piece.choices[0].text for piece in pieces) == "one two"
        assert client.get("/health").status == 200


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "//"])
def test_the_address_may_end_in_v1_or_not(fake_server: Serve, suffix: str) -> None:
    server = fake_server()
    with OpenAIClient(server.url + suffix) as client:
        client.models()
        assert client.url == server.url
    assert server.seen[0][1] == "/v1/models"


def test_key_and_fields_are_sent_as_they_are(fake_server: Serve) -> None:
    server = fake_server()
    with OpenAIClient(server.url, api_key="sk-secret") as client:
        client.chat(HELLO, model="fake-1", temperature=0.5, logit_bias={}, user="ü")
    _, path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-secret"
    fields = {"model": "fake-1", "messages": HELLO, "temperature": 0.5, "logit_bias": {}, "user": "ü", "stream": False}
    assert json.loads(body) == fields


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:8000", "ftp://host", "http://", "http://[::1", "http://host:99999", "http://host:abc",
        "http://a\x00b", "http://user:secret@host", "http://host/v1?key=1", "http://host#part",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(InputError) as caught:
        OpenAIClient(url)
    assert "secret" not in one_sentence(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(InputError) as caught:
        OpenAIClient("http://127.0.0.1:1", key)
    assert not key or key not in one_sentence(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_cannot_be_waited_is_refused(timeout: float) -> None:
    with pytest.raises(InputError, match="timeout"):
        OpenAIClient("http://127.0.0.1:1", timeout=timeout)


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://proxy")
    with pytest.raises(InputError, match="proxy"):
        OpenAIClient("http://127.0.0.1:1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", "\ud800"])
def test_fields_that_have_no_form_in_json_are_refused(value: object) -> None:
    with OpenAIClient("http://127.0.0.1:1") as client, pytest.raises(InputError, match="JSON") as caught:
        client.chat(HELLO, model="m", temperature=value)
    one_sentence(caught.value)


def test_streaming_is_chosen_by_the_method() -> None:
    with OpenAIClient("http://127.0.0.1:1") as client, pytest.raises(InputError, match="_stream"):
        client.chat(HELLO, model="m", stream=True)


def test_an_error_has_the_fields_of_the_answer(fake_server: Serve) -> None:
    with OpenAIClient(fake_server().url) as client:
        for ask in (client.chat, lambda *args, **kwargs: list(client.chat_stream(*args, **kwargs))):
            with pytest.raises(ApiError) as caught:
                ask(HELLO, model="unknown")
            error = caught.value
            fields = (error.status, error.message, error.type, error.param, error.code)
            assert fields == (404, "no such model", "invalid_request_error", "model", None)
            one_sentence(error)


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": {"message": "no", "code": 7}}', "no", "7"),
        (b'{"error": {"message": "no\\u001b[2J\\nway."}}', "no�[2J way", None),
        (b'{"error": "plain"}', '{"error": "plain"}', None),
        (b'{"detail": "Not Found"}', '{"detail": "Not Found"}', None),
        (b"<html>\n502\xff</html>", "<html> 502�</html>", None),
        (b"", "no explanation", None),
        (b"[" * 100_000, "[" * 200 + "…", None),
    ],
)
def test_an_error_in_any_form_is_quoted_on_one_line(body: bytes, message: str, code: str | None) -> None:
    with answering(http(body, status="502 Bad Gateway")) as url, OpenAIClient(url) as client:
        with pytest.raises(ApiError) as caught:
            client.models()
        assert (caught.value.status, caught.value.message, caught.value.code) == (502, message, code)
        one_sentence(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        http(b"<html>"),
        http(b"\xff"),
        http(b'{"data": [{"id": 7}]}'),
        http(b'{"data": null}'),
        http(b"[" * 100_000),
        http(b"", "text/html", "302 Found", "Location: /login"),
        http(b"not gzip", "application/json", "200 OK", "Content-Encoding: gzip"),
    ],
)
def test_an_answer_in_another_form_is_refused(answer: bytes) -> None:
    with answering(answer) as url, OpenAIClient(url) as client, pytest.raises(ProtocolError) as caught:
        client.models()
    one_sentence(caught.value)


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneserve.client._http._MAX_ANSWER_BYTES", 1000)
    answer = http(b"x" * 1001)
    with answering(answer) as url, OpenAIClient(url) as client, pytest.raises(ProtocolError, match="1000 bytes"):
        client.get("/")


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"data: {}\n\n", "text/event-stream", "OpenAI's form"),
        (b"data: nonsense\n\n", "text/event-stream", "OpenAI's form"),
        (b"data: \xff\n\n", "text/event-stream", "UTF-8"),
        (b"", "text/event-stream", "without [DONE]"),
        (b"data: [DONE]\n", "text/event-stream", "without [DONE]"),
        (b"{}", "application/json", "application/json instead of text/event-stream"),
    ],
)
def test_a_stream_in_another_form_is_refused(body: bytes, kind: str, expected: str) -> None:
    with answering(http(body, kind)) as url, OpenAIClient(url) as client:
        with pytest.raises(ProtocolError) as caught:
            list(client.chat_stream(HELLO, model="m"))
        assert expected in one_sentence(caught.value)


def test_an_error_in_the_middle_of_a_stream_is_raised_after_what_came_before() -> None:
    chunk = b'{"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": []}'
    body = b"data: " + chunk + b'\n\ndata: {"error": {"message": "out of memory", "type": "server_error"}}\n\n'
    with answering(http(body, "text/event-stream")) as url, OpenAIClient(url) as client:
        stream = client.completion_stream("x", model="m")
        assert next(stream).id == "1"
        with pytest.raises(ApiError, match="out of memory") as caught:
            next(stream)
        assert (caught.value.status, caught.value.type) == (200, "server_error")


def test_nobody_there(fake_server: Serve) -> None:
    server = fake_server()
    server.server_close()
    with OpenAIClient(server.url) as client, pytest.raises(TransportError, match="cannot be reached") as caught:
        client.models()
    one_sentence(caught.value)


@pytest.mark.parametrize("host", ["a" * 70, ".."])
def test_a_name_that_cannot_be_looked_up(host: str) -> None:
    with OpenAIClient(f"http://{host}") as client, pytest.raises(TransportError, match="cannot be reached") as caught:
        client.models()
    one_sentence(caught.value)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", http(b"x" * 10)[:-5]])
def test_a_connection_that_breaks(answer: bytes) -> None:
    with answering(answer) as url, OpenAIClient(url) as client, pytest.raises(TransportError, match="broke off") as e:
        client.models()
    one_sentence(e.value)


def test_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with OpenAIClient(url, timeout=0.05) as client, pytest.raises(TransportError, match=r"0\.05 seconds") as caught:
            client.models()
    one_sentence(caught.value)


def test_leaving_a_stream_ends_its_request() -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            chunk = '{"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": []}'
            with listener.accept()[0] as connection:
                take_request(connection)
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
                connection.sendall(head + f"data: {chunk}\n\n".encode())
                connection.settimeout(10)
                if connection.recv(1) == b"":
                    ended.set()

        thread = threading.Thread(target=serve)
        thread.start()
        with OpenAIClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            stream = client.completion_stream("x", model="m")
            next(stream)
            stream.close()
            thread.join()
    assert ended.is_set()
