"""A small OpenAI-compatible server that can be made faulty in one respect at a time."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from random import Random
from typing import Any
from uuid import uuid4

import pytest

Json = dict[str, Any]
MODEL = "fake-1"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
# As the checker asks them: four at once.
AT_ONCE = 4


class RefusedError(Exception):
    """An HTTP error answer."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


class FakeServer(ThreadingHTTPServer):
    """Answers with counted words, one token each; ``faults`` says what it does wrong."""

    daemon_threads = True
    faults: frozenset[str] = frozenset()

    def __init__(self, faults: frozenset[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = faults
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.all_here = threading.Barrier(AT_ONCE)
        self.second_here = threading.Event()
        self.arrivals = count()
        self.randomness = Random(0)
        self.warm = {False: count(), True: count()}


def words(fields: Json, server: FakeServer) -> tuple[list[str], str]:
    """Return the tokens of an answer and its finish_reason."""
    limit, faults = fields.get("max_tokens", 40), server.faults
    source = [WORDS[index % len(WORDS)] for index in range(40)]
    if fields.get("temperature", 1) > 0:
        random = server.randomness if "seed" not in fields or "seed ignored" in faults else Random(fields["seed"])
        source = random.choices(WORDS, k=40)
    elif "temperature ignored" in faults and limit > 3 and not fields.keys() & {"prompt", "stop", "stream_options"}:
        # The first whole answer and the first streamed one are what the other checks hold theirs against.
        source = source if next(server.warm[fields["stream"]]) == 0 else server.randomness.choices(WORDS, k=40)
    if "short model" in faults:
        source = source[:2]
    tokens = [word if index == 0 else f" {word}" for index, word in enumerate(source)]
    if "max_tokens ignored" in faults:
        limit = 40
    tokens, reason = tokens[:limit], "stop" if len(tokens) <= limit else "length"
    if "max_tokens reason" in faults and limit == 3:
        reason = "stop"
    stops = fields.get("stop", [])
    text = "".join(tokens)
    for stop in [] if "stop ignored" in faults else stops:
        if stop in text:
            end = text.index(stop) + (len(stop) if "stop included" in faults else 0)
            return [text[: end - ("stop early" in faults)]], "length" if "stop reason" in faults else "stop"
    return tokens, reason


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes, and would wait for the first to be acknowledged
    server: FakeServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self.server.seen.append(("GET", self.path, dict(self.headers), b""))
        self._guarded(self._get)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(("POST", self.path, dict(self.headers), body))
        self._guarded(lambda: self._post(body))

    def _guarded(self, answer: Callable[[], None]) -> None:
        try:
            answer()
        except RefusedError as refusal:
            error: Json = {"message": refusal.message, "type": "invalid_request_error", "param": refusal.param}
            error["code"] = None
            bare = "unknown model bare" if refusal.status == 404 else "errors bare"
            if refusal.status in (400, 404) and bare in self._faults:
                self._json({"detail": refusal.message}, refusal.status)
                return
            if refusal.status == 400 and "errors without code" in self._faults:
                del error["code"]
            wrong = [field for field in error if f"errors with a wrong {field}" in self._faults]
            if refusal.status == 400:
                error |= {field: [] for field in wrong}
            self._json({"error": error}, refusal.status)

    @property
    def _faults(self) -> frozenset[str]:
        return self.server.faults

    def _get(self) -> None:
        if self.path == "/health":
            status = 500 if "health broken" in self._faults else 404 if "health missing" in self._faults else 200
            self._json({"status": "?"}, status)
        elif self.path != "/v1/models":
            raise RefusedError(404, "nothing here")
        elif "models html" in self._faults:
            self._send(200, "text/html", b"<html>a proxy's login page</html>")
        elif "models locked" in self._faults:
            raise RefusedError(401, "no key")
        else:
            known = [] if "models empty" in self._faults else [{"id": MODEL, "object": "model"}]
            self._json({"object": "list", "data": known})

    def _post(self, body: bytes) -> None:
        try:
            fields = json.loads(body)
        except ValueError:
            if "json accepted" in self._faults:
                self._json({})
                return
            raise RefusedError(422 if "json 422" in self._faults else 400, "no JSON") from None
        fields.setdefault("stream", False)
        if fields["model"] != MODEL and "any model" not in self._faults:
            raise RefusedError(400 if "unknown model 400" in self._faults else 404, "no such model", "model")
        if fields.get("temperature", 1) < 0 and "cold accepted" not in self._faults:
            raise RefusedError(422 if "value 422" in self._faults else 400, "too cold", "temperature")
        if self.path == "/v1/chat/completions":
            self._optional(fields)
            self._together(fields)
            self._stream(fields, chat=True) if fields["stream"] else self._chat(fields)
        elif self.path == "/v1/completions" and "completions missing" not in self._faults:
            self._stream(fields, chat=False) if fields["stream"] else self._completion(fields)
        else:
            raise RefusedError(404, "nothing here")

    def _optional(self, fields: Json) -> None:
        for name in ("n", "logprobs", "tools", "response_format"):
            if name in fields and f"{name} refused" in self._faults:
                raise RefusedError(400, f"{name} is not supported", name)
            if name in fields and f"{name} broken" in self._faults:
                raise RefusedError(500, f"{name} hurts")

    @staticmethod
    def _in_crowd(fields: Json) -> bool:
        prompt = str(fields["messages"])
        return "Count from" in prompt and "Count from one" not in prompt

    def _together(self, fields: Json) -> None:
        """Hold each of the requests at once until the others are here, so that a serial client would fail."""
        if not self._in_crowd(fields):
            return
        if "one at a time" in self._faults:
            if next(self.server.arrivals) > 0:
                self.server.second_here.set()
                raise RefusedError(503, "busy")
            self.server.second_here.wait(10)
        else:
            self.server.all_here.wait(10)

    def _envelope(self, kind: str, choices: list[Json], usage: Json | None = None) -> Json:
        unique = "same" if "same ids" in self._faults else uuid4().hex
        envelope: Json = {"id": unique, "object": kind, "created": 1, "model": MODEL, "choices": choices}
        return envelope if usage is None else {**envelope, "usage": usage}

    def _usage(self, tokens: list[str], fault: str) -> Json | None:
        if f"{fault} missing" in self._faults:
            return None
        off = f"{fault} wrong" in self._faults
        return {"prompt_tokens": 9, "completion_tokens": len(tokens), "total_tokens": 9 + len(tokens) + off}

    def _chat(self, fields: Json) -> None:
        choices = []
        tokens: list[str] = []
        for index in range(1 if "n ignored" in self._faults else fields.get("n", 1)):
            tokens, reason = words(fields, self.server)
            message: Json = {"role": "user" if "chat role" in self._faults else "assistant", "content": "".join(tokens)}
            message |= self._special(fields)
            if "chat silent" in self._faults or ("crowd silent" in self._faults and self._in_crowd(fields)):
                message["content"] = ""
            if "chat odd reason" in self._faults and reason == "length" and len(tokens) > 3:
                reason = "odd"
            choice: Json = {"index": index, "message": message, "finish_reason": reason}
            if fields.get("logprobs") and "logprobs ignored" not in self._faults:
                choice["logprobs"] = {"content": [self._logprob(token) for token in tokens]}
            choices.append(choice)
        kind = "chat.reply" if "chat object" in self._faults else "chat.completion"
        self._json(self._envelope(kind, choices, self._usage(tokens, "usage")))

    def _logprob(self, token: str) -> Json:
        value = 0.5 if "logprobs positive" in self._faults else -0.5
        others = [] if "logprobs alone" in self._faults else [{"token": token, "logprob": value}]
        return {"token": token, "logprob": value, "top_logprobs": others}

    def _special(self, fields: Json) -> Json:
        if "tools" in fields and "tools ignored" not in self._faults:
            name = "get_time" if "tools other" in self._faults else "get_weather"
            arguments = "{" if "tools broken arguments" in self._faults else '{"city": "Oslo"}'
            call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
            return {"content": None, "tool_calls": [call]}
        if "response_format" in fields and "response_format ignored" not in self._faults:
            extra = {"note": ""} if "response_format extra" in self._faults else {}
            return {"content": json.dumps({"even": True, "size": "small", **extra})}
        return {}

    def _completion(self, fields: Json) -> None:
        tokens, reason = words(fields, self.server)
        text = "" if "completions empty" in self._faults else "".join(tokens)
        odd = "completions odd reason" in self._faults
        choice = {"index": 0, "text": text, "finish_reason": "odd" if odd else reason}
        self._json(self._envelope("text_completion", [choice], self._usage(tokens, "usage")))

    def _stream(self, fields: Json, *, chat: bool) -> None:
        tokens, reason = words(fields, self.server)
        with_usage = fields.get("stream_options", {}).get("include_usage", False)
        # A fault of a stream is one of the plain stream only, so that no other check meets it.
        prefix = "usage stream" if with_usage else "stream" if chat else "completion stream"
        wrong = {fault.removeprefix(prefix).strip() for fault in self._faults if fault.startswith(prefix)}
        deltas: list[tuple[Json, str | None]] = [({"content": token}, None) for token in tokens]
        if "lost" in wrong:
            del deltas[1]
        if "empty" in wrong:
            deltas = []
        if chat and "no role" not in wrong:
            deltas.insert(0, ({"role": "assistant", "content": ""}, None))
        if "no reason" not in wrong:
            deltas.append(({}, "odd" if "odd reason" in wrong else reason))
        if "two reasons" in wrong:
            deltas.append(({}, reason))
        if "without end" in wrong:
            deltas *= 1000
        if "goes on" in wrong:
            deltas.append(({"content": " more"}, None))
        if "no choices" in wrong:
            deltas = []
        kind = "chat.completion.chunk" if chat else "text_completion"
        chunks = []
        for delta, ends in deltas:
            piece = {"delta": delta} if chat else {"text": delta.get("content", "")}
            chunks.append(self._envelope(kind, [{"index": 0, **piece, "finish_reason": ends}]))
        if with_usage:
            last = chunks[-1]["choices"] if "choices" in wrong else []
            chunks.append(self._envelope(kind, last, self._usage(tokens, "usage stream")))
        if "new ids" not in wrong:
            for chunk in chunks:
                chunk["id"] = "stream-1"
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        if "error" in wrong:
            body = 'data: {"error": {"message": "out of memory", "type": "server_error", "code": 500}}\n\n'
        if "no done" not in wrong:
            body += "data: [DONE]\n\n"
        self._send(200, "text/plain" if "plain text" in wrong else "text/event-stream; charset=utf-8", body.encode())

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Serve = Callable[..., FakeServer]


@contextmanager
def _running(server: FakeServer) -> Iterator[FakeServer]:
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def fake_server() -> Iterator[Serve]:
    """Return a function that starts a server with the given faults."""
    with ExitStack() as stack:

        def start(*faults: str) -> FakeServer:
            return stack.enter_context(_running(FakeServer(frozenset(faults))))

        yield start
