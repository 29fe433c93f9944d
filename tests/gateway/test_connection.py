"""Protects: a client that is slow, on purpose or not, holds nothing up and nothing open for long."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, make_served, running_server
from tuneserve.gateway import ServedModel
from tuneserve.gateway._connection import Connection
from tuneserve.gateway._listen import listen

CHAT = "/v1/chat/completions"
WAIT = 30


class Hasty(Connection):
    """A connection with less patience."""

    head_seconds = 0.1
    stalled_seconds = 0.1


@contextmanager
def connected(url: str, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    with closing(socket.socket()) as connection:
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(WAIT)
        address = urlsplit(url)
        connection.connect((address.hostname, address.port))
        yield connection


def is_dropped(connection: socket.socket) -> bool:
    """Wait until the other side closes; False if it answers instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_a_head_that_does_not_come_is_not_waited_for(served: ServedModel, sent: bytes) -> None:
    with running_server(served, connection=Hasty) as url, connected(url) as connection:
        connection.sendall(sent)
        assert is_dropped(connection)
        assert httpx.get(f"{url}/health").status_code == 200


def test_the_second_head_is_not_waited_for_either(served: ServedModel) -> None:
    with running_server(served, connection=Hasty) as url, connected(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(4096)
        connection.sendall(b"GET /hea")
        assert is_dropped(connection)


def test_a_running_answer_is_not_cut_off(served: ServedModel, engine: FakeEngine) -> None:
    engine.hold_after = 3
    with running_server(served, connection=Hasty) as url, connected(url) as connection:
        body = json.dumps(chat_body()).encode()
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)))
        assert not engine.requests
        connection.sendall(body)
        assert engine.holding.acquire(timeout=WAIT)
        with connected(url) as other:
            assert is_dropped(other), "the patience has not run out meanwhile"
        engine.release()
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_client_that_does_not_read_is_dropped_and_its_work_ends(tokenizer_dir: Path) -> None:
    served = make_served(tokenizer_dir, context_length=1_000_000)
    engine = served.engine
    assert isinstance(engine, FakeEngine)
    engine.answer = [65] * 100_000
    with running_server(served, connection=Hasty) as url, connected(url, receive_bytes=4096) as connection:
        body = json.dumps(chat_body(stream=True)).encode()
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)))
        connection.sendall(body)
        assert engine.has_cancelled.acquire(timeout=WAIT)
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("size", [40_000, 400_000])
def test_an_endless_head_is_refused(served: ServedModel, size: int) -> None:
    with running_server(served) as url, connected(url) as connection:
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * size)
            answered = connection.recv(12)
        except (ConnectionResetError, BrokenPipeError):
            answered = b""
        assert answered in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("head", [b"GET /%s HTTP/1.1\r\nHost: x", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: %s"])
def test_a_large_head_that_comes_at_once_is_refused(served: ServedModel, head: bytes) -> None:
    with running_server(served) as url, connected(url) as connection:
        connection.sendall(head % (b"a" * 40_000) + b"\r\n\r\n")
        assert connection.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 431")
        assert httpx.get(f"{url}/health").status_code == 200


def test_two_lengths_of_one_body_are_refused(served: ServedModel, engine: FakeEngine) -> None:
    body = json.dumps(chat_body()).encode()
    with running_server(served) as url, connected(url) as connection:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head % (CHAT.encode(), len(body)) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Transfer-Encoding" in answer
    assert not engine.requests


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX\x00: 1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(served: ServedModel, engine: FakeEngine, sent: bytes) -> None:
    with running_server(served, connection=Hasty) as url, connected(url) as connection:
        connection.sendall(sent)
        try:
            answer = connection.recv(13)
        except ConnectionResetError:
            answer = b""
        assert answer[9:10] in (b"", b"4")
        assert httpx.get(f"{url}/health").status_code == 200
        assert not engine.requests


def test_peers_that_are_gone_are_noticed() -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        with closing(socket.create_connection(listener.getsockname())):
            accepted, _ = listener.accept()
        with closing(accepted):
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
