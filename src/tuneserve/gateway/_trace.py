"""OpenTelemetry traces: one span per request, with the attributes of the semantic conventions for generative AI."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from tuneserve._version import __version__
from tuneserve.errors import InputError
from tuneserve.gateway._record import Record

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def require_opentelemetry(endpoint: str) -> None:
    """Check that traces can be sent to ``endpoint``.

    Raises:
        InputError: OpenTelemetry is not installed, or that is no URL.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            f"the OTLP endpoint {endpoint!r} is no http(s) URL; give one like http://127.0.0.1:4318/v1/traces."
        )
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        raise InputError(
            "traces need OpenTelemetry, which is not installed; install it with 'pip install tuneserve[otel]'."
        ) from None


class Tracer:
    """Sends spans to an OTLP collector over HTTP, from a thread of its own and without ever holding up a request.

    Raises:
        InputError: OpenTelemetry is not installed, or ``endpoint`` is no URL.
    """

    def __init__(self, endpoint: str) -> None:
        require_opentelemetry(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "tuneserve", "service.version": __version__})
        )
        url = endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
        self._tracer = self._provider.get_tracer("tuneserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def span(self, record: Record, headers: Headers) -> Iterator[None]:
        """Trace one request, as part of the trace that its ``traceparent`` header names."""
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract({name: headers[name] for name in _TRACE_HEADERS if name in headers})
        name = _OPERATIONS.get(record.path, record.method)
        span = self._tracer.start_span(name, context, SpanKind.SERVER, start_time=int(record.started_at * 1e9))
        try:
            yield
        finally:
            _describe(span, record)
            span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


_TRACE_HEADERS = ("traceparent", "tracestate")


def _describe(span: "Span", record: Record) -> None:
    operation = _OPERATIONS.get(record.path)
    span.set_attribute("http.request.method", record.method)
    span.set_attribute("url.path", record.path)
    span.set_attribute("tuneserve.request_id", record.id)
    if record.status is not None:
        span.set_attribute("http.response.status_code", record.status)
        if record.status >= 500:
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)
    if operation is None:
        return
    span.set_attribute("gen_ai.operation.name", operation)
    span.set_attribute("gen_ai.provider.name", "tuneserve")
    if record.model is not None:
        span.update_name(f"{operation} {record.model}")
        span.set_attribute("gen_ai.request.model", record.model)
    span.set_attribute("gen_ai.usage.input_tokens", record.prompt_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", record.generated_tokens)
    if record.key is not None:
        span.set_attribute("enduser.id", record.key.name)
    if record.first_token is not None:
        moment = record.started_at + record.first_token - record.arrived
        span.add_event("first token", timestamp=int(moment * 1e9))
