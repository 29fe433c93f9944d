"""Protects: whatever bytes come, no request is answered with a 5xx, and none gets past the keys."""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, make_served, running_server
from tuneserve.gateway import Limits, Settings, add_key

CHAT = b"/v1/chat/completions"
BODY = json.dumps(chat_body()).encode()
WAIT = 30


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    return file, add_key(file, "alice", Limits()).encode()


@pytest.fixture(scope="module")
def url(tokenizer_dir: Path, key: tuple[Path, bytes]) -> Iterator[str]:
    with running_server(make_served(tokenizer_dir), Settings(api_keys=key[0])) as url:
        yield url


def answers(url: str, sent: bytes) -> list[tuple[int, bytes]]:
    """Send bytes, the last request of which ends the connection; return the status and the rest of each answer."""
    address = urlsplit(url)
    received = b""
    with closing(socket.create_connection((address.hostname, address.port or 80), WAIT)) as connection:
        connection.sendall(sent)
        while part := connection.recv(1 << 16):
            received += part
    found = received.split(b"HTTP/1.1 ")[1:]
    assert received == b"".join(b"HTTP/1.1 " + each for each in found), "nothing but answers came back"
    return [(int(each[:3]), each[3:]) for each in found]


def head(line: bytes, *fields: bytes, last: bool = True) -> bytes:
    ending = (b"Connection: close",) if last else ()
    return b"\r\n".join((line, b"Host: x", *fields, *ending, b"", b""))


def post(path: bytes, body: bytes, *fields: bytes, last: bool = True) -> bytes:
    return head(b"POST %s HTTP/1.1" % path, b"Content-Length: %d" % len(body), *fields, last=last) + body


TARGETS = [
    b"//v1/models", b"/v1//models", b"/v1/models/", b"/v1/%6dodels", b"/%2e%2e/v1/models", b"/health/../v1/models",
    b"/health/%2e%2e/v1/models", b"/health%2f..%2fv1%2fmodels", b"/health%00", b"/health;/v1/models", b"/HEALTH",
    b"/health/", b"/ready%20", b"/page/../v1/models", b"/page/%2e%2e/%2e%2e/etc/passwd", b"/page/..%5c..%5cx",
    b"/page//etc/passwd", b"http://x/v1/models", b"http://x/health", b"x:80", b"*", b"/v1/models?key=%ff",
    b"/health#/v1/models", b"/v1/models%0d%0aX-A:%201", b"/%ff%fe", b"/%", b"/%zz", b"/v1/models/%2e%2e%2f", b"/docs/",
    b"/metrics", b"/version", b"/openapi.json", b"/redoc", b"/v1/tuneserve/models", b"/v1/responses/x", CHAT,
]  # fmt: skip
METHODS = [b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"PATCH", b"DELETE", b"TRACE", b"CONNECT", b"get", b"X-Y"]


@pytest.mark.parametrize("method", METHODS)
def test_no_path_gets_past_the_keys(url: str, method: bytes) -> None:
    for target in TARGETS:
        ((status, rest),) = answers(url, head(b"%s %s HTTP/1.1" % (method, target)))
        assert status in (400, 401), (target, status)
        assert b"tuned" not in rest


def test_what_is_open_is_open_by_every_spelling_and_to_nothing_else(url: str) -> None:
    for target in (b"/health", b"/%68ealth", b"/health?x=1", b"/docs", b"/page/style.css"):
        for method, status in ((b"GET", 200), (b"HEAD", 200), (b"OPTIONS", 405), (b"POST", 405), (b"CONNECT", 405)):
            ((got, rest),) = answers(url, head(b"%s %s HTTP/1.1" % (method, target)))
            assert got == status, (method, target)
            if method == b"HEAD":
                assert rest.endswith(b"\r\n\r\n")


def test_a_key_counts_in_its_two_headers_alone(url: str, key: tuple[Path, bytes]) -> None:
    _, secret = key
    for field in (b"Authorization: Bearer " + secret, b"authorization: bearer   " + secret, b"X-API-KEY: " + secret):
        assert [status for status, _ in answers(url, head(b"GET /v1/models HTTP/1.1", field))] == [200]
    wrong = [
        b"Authorization: " + secret, b"Authorization: Basic " + secret, b"Authorization: Bearer" + secret,
        b"Authorization: Bearer " + secret + b" x", b"Authorization: Bearer " + secret[:-1], b"Authorization: Bearer",
        b"Proxy-Authorization: Bearer " + secret, b"Cookie: api_key=" + secret, b"Api-Key: " + secret,
        b"X-Api-Key: Bearer " + secret, b"Authorization: Bearer \xff\xfe", b"X-Api-Key: " + b"a" * 20_000,
        b"X-Forwarded-For: 127.0.0.1",
    ]  # fmt: skip
    for field in wrong:
        assert [status for status, _ in answers(url, head(b"GET /v1/models HTTP/1.1", field))] == [401], field
    for target in (b"/v1/models?api_key=%s", b"/v1/models?x-api-key=%s", b"/v1/models/%s"):
        assert [status for status, _ in answers(url, head(b"GET %s HTTP/1.1" % (target % secret)))] == [401]
    body = json.dumps({**chat_body(), "api_key": secret.decode()}).encode()
    assert [status for status, _ in answers(url, post(CHAT, body))] == [401]


ODD_FIELDS = [
    b"Origin: http://[", b"Origin: \xff", b"Origin: null", b"Sec-Fetch-Site: \xff", b"Content-Type: \xff\x80",
    b"Content-Type: multipart/form-data; boundary=x", b"Content-Encoding: gzip", b"X-Request-Id: \xff'\"<script>",
    b"traceparent: 00-zz-zz-zz", b"Accept: \xff", b"Accept-Encoding: gzip, br;q=\xff", b"Range: bytes=0-0",
    b"If-Match: *", b"Expect: something", b"Upgrade: websocket\r\nConnection: Upgrade", b"Upgrade: h2c",
    b"TE: trailers", b"Content-Type: a\r\nContent-Type: b", b"Connection: close, keep-alive, \xff",
    b"X-Forwarded-Host: evil", b"Forwarded: host=evil", b"X-HTTP-Method-Override: DELETE",
]  # fmt: skip


@pytest.mark.parametrize("field", ODD_FIELDS)
def test_odd_headers_do_no_harm(url: str, key: tuple[Path, bytes], field: bytes) -> None:
    allowed = b"Authorization: Bearer " + key[1]
    for sent in (post(CHAT, BODY, allowed, field), head(b"GET /nowhere HTTP/1.1", allowed, field)):
        ((status, rest),) = answers(url, sent)
        assert status < 500, rest
        assert b"evil" not in rest
        assert b"\xff" not in rest


@pytest.mark.parametrize("host", [b"[", b"", b"[::1", b"a b", b"\xff", b"x:99999999", b"/\\@", b"x" * 5_000])
def test_a_host_that_is_none_does_no_harm(url: str, key: tuple[Path, bytes], host: bytes) -> None:
    for line in (b"GET /nowhere HTTP/1.1", b"PUT /v1/models HTTP/1.1"):
        sent = b"\r\n".join((line, b"Host: " + host, b"X-Api-Key: " + key[1], b"Connection: close", b"", b""))
        ((status, _),) = answers(url, sent)
        assert status in (400, 404, 405)


def test_a_body_may_come_in_pieces_or_be_no_json(url: str, key: tuple[Path, bytes]) -> None:
    allowed = b"X-Api-Key: " + key[1]
    pieces = b"".join(b"1;ext=\xff\r\n%c\r\n" % byte for byte in BODY)
    chunked = head(b"POST %s HTTP/1.1" % CHAT, b"Transfer-Encoding: chunked", allowed)
    ((status, rest),) = answers(url, chunked + pieces + b"0\r\nX-Trailer: 1\r\n\r\n")
    assert (status, b"Hello" in rest) == (200, True)
    assert [status for status, _ in answers(url, chunked + b"ZZ\r\nab")] == [400]
    for body in (b"", b"\xff\xfe", b"a=b&c=d", b"--x\r\n\r\n1\r\n--x--", gzip.compress(BODY), BODY[:-1]):
        ((status, rest),) = answers(url, post(CHAT, body, allowed))
        assert (status, b"invalid_json" in rest) == (400, True)
    for path in (
        b"/v1/completions",
        b"/v1/responses",
        b"/v1/messages",
        b"/v1/embeddings",
        b"/tokenize",
        b"/detokenize",
    ):
        for body in (b"[]", b'{"model": "\\ud800"}', b"\x00", b'{"model": {}}'):
            ((status, _),) = answers(url, post(path, body, allowed))
            assert status == 400


def test_requests_that_come_together_are_answered_in_their_order(url: str, key: tuple[Path, bytes]) -> None:
    allowed = b"X-Api-Key: " + key[1]
    sent = post(CHAT, BODY, allowed, last=False) + head(b"GET /v1/models HTTP/1.1", last=False)
    sent += post(CHAT, b"{", allowed, last=False) + head(b"GET /v1/models HTTP/1.1", allowed, last=False)
    sent += head(b"GET /health HTTP/1.1")
    assert [status for status, _ in answers(url, sent)] == [200, 401, 400, 200, 200]
    # What is left of a body that was refused is no request.
    smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert [status for status, _ in answers(url, post(CHAT, smuggled))] == [401]
    assert [status for status, _ in answers(url, post(b"/nowhere", smuggled, allowed))] == [404]


def test_long_queries_are_bounded(url: str, key: tuple[Path, bytes]) -> None:
    allowed = b"X-Api-Key: " + key[1]
    for size, statuses in ((20_000, (200,)), (40_000, (400, 431))):
        for target in (b"/health?%s", b"/v1/models?%s"):
            ((status, _),) = answers(url, head(b"GET %s HTTP/1.1" % (target % (b"%ff&" * (size // 4))), allowed))
            assert status in statuses


def test_old_http_works(url: str, key: tuple[Path, bytes]) -> None:
    ((status, _),) = answers(url, b"GET /health HTTP/1.0\r\n\r\n")
    assert status == 200
    ((status, _),) = answers(url, b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert status == 401
    assert httpx.get(f"{url}/health").status_code == 200


def test_the_engine_is_asked_for_nothing_by_whom_has_no_key(tokenizer_dir: Path, key: tuple[Path, bytes]) -> None:
    served = make_served(tokenizer_dir)
    assert isinstance(served.engine, FakeEngine)
    with running_server(served, Settings(api_keys=key[0])) as url:
        for path in (CHAT, b"/v1/completions", b"/v1/responses", b"/v1/messages", b"/%2fv1/chat/completions"):
            assert [status for status, _ in answers(url, post(path, BODY))] == [401]
        assert not served.engine.requests
