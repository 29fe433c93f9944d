"""Protects: a collector gets one span per request, in the client's trace, and none of its text."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.gateway.conftest import FakeEngine, chat_body
from tuneserve.errors import InputError
from tuneserve.gateway import ServedModel, Settings
from tuneserve.gateway._app import application
from tuneserve.gateway._state import Gateway

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                data = gzip.decompress(data)
            bodies.append(data)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


@pytest.mark.anyio
async def test_a_request_is_a_span(served: ServedModel, engine: FakeEngine, collector: tuple[str, list[bytes]]) -> None:
    url, bodies = collector
    gateway = Gateway(Settings(otlp_endpoint=url))
    gateway.open(served)
    transport = httpx.ASGITransport(application(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        await client.post("/v1/chat/completions", json=chat_body("a secret"), headers=headers)
        await client.get("/v1/models")
    assert gateway.tracer is not None
    gateway.tracer.close()
    sent = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    spans = [
        span for each in sent for group in each.resource_spans for scope in group.scope_spans for span in scope.spans
    ]
    chat, models = spans
    assert chat.name == "chat tuned"
    assert (chat.trace_id.hex(), chat.parent_span_id.hex()) == (TRACE, PARENT)
    attributes = {each.key: each.value.string_value or each.value.int_value for each in chat.attributes}
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "tuned"
    assert attributes["gen_ai.usage.input_tokens"] == len(engine.prompt)
    assert attributes["gen_ai.usage.output_tokens"] == 15
    assert attributes["http.response.status_code"] == 200
    assert chat.start_time_unix_nano <= chat.events[0].time_unix_nano <= chat.end_time_unix_nano
    assert models.name == "GET"
    assert not any(b"secret" in body for body in bodies)


def test_without_the_extra_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"pip install tuneserve\[otel\]"):
        Settings(otlp_endpoint="http://127.0.0.1:4318").check()


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(InputError, match="no http"):
        Settings(otlp_endpoint="localhost:4317").check()
