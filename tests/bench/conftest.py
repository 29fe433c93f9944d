"""A server that streams completions, and can be made odd in one respect."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Json = dict[str, Any]
# Requests that the tests keep on their way.
AT_ONCE = 3


class FakeServer(ThreadingHTTPServer):
    """Answers each token with one piece; ``odd`` is what it does differently."""

    daemon_threads = True

    def __init__(self, odd: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.odd = odd
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: list[Json] = []
        self.lock = threading.Lock()
        self.running = self.most_running = 0
        # Those that warm it up; or, where one warms it up, those that are measured.
        self.held = {"all at once": range(2, 2 + AT_ONCE), "holds all": range(3, 3 + AT_ONCE)}.get(odd or "", range(0))
        self.all_here = threading.Barrier(AT_ONCE)
        self.released = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeServer

    def do_GET(self) -> None:
        models = [] if self.server.odd == "no model" else [{"id": "fake", "object": "model"}]
        self._answer(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body: Json = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.seen.append(body)
            number = len(server.seen)
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            if number in server.held:
                # They are only answered if all are there at once.
                server.all_here.wait(timeout=20)
            if server.odd in body:
                self._answer(400, {"error": {"message": f"{server.odd} is unknown", "type": "invalid_request_error"}})
            elif (server.odd == "fails at times" and number % 3 == 0) or (server.odd == "fails later" and number > 1):
                self._answer(503, {"error": {"message": "overloaded", "type": "server_error"}})
            else:
                self._stream(body, number)
        finally:
            with server.lock:
                server.running -= 1

    def _stream(self, body: Json, number: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.server.odd == "only comments" and number > 1:
            while not self.server.released.wait(0.01):
                self.wfile.write(b": still there\n\n")
            return
        count = body["max_tokens"]
        pieces = 10_000 if self.server.odd == "endless" else count
        try:
            for index in range(pieces):
                self._event({"index": 0, "text": " word", "finish_reason": "length" if index == pieces - 1 else None})
            if "stream_options" in body:
                usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count, "total_tokens": 0}
                self._event(None, usage)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            assert self.server.odd == "endless"

    def _event(self, choice: Json | None, usage: Json | None = None) -> None:
        choices = [] if choice is None else [choice]
        chunk = {"id": "x", "object": "text_completion", "created": 0, "model": "fake", "choices": choices}
        self.wfile.write(b"data: " + json.dumps({**chunk, "usage": usage}).encode() + b"\n\n")

    def _answer(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def _running(odd: str | None) -> Iterator[FakeServer]:
    server = FakeServer(odd)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[..., FakeServer]]:
    """Return what starts a server, which ends with the test."""
    with ExitStack() as stack:

        def begin(odd: str | None = None) -> FakeServer:
            return stack.enter_context(_running(odd))

        yield begin
