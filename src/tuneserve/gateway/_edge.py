"""What happens to every HTTP request, whatever its path: who may ask, how much, counting, and errors in one form."""

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneserve.gateway._connection import MAX_HEAD_BYTES
from tuneserve.gateway._errors import ApiError, quoted
from tuneserve.gateway._log import log_request
from tuneserve.gateway._page import PAGE_PATHS
from tuneserve.gateway._record import Record, current, request_id
from tuneserve.gateway._refusal import error_response
from tuneserve.gateway._state import Gateway

_CLIENT_LEFT = 499
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OPEN_PATHS = frozenset({"/health", "/ready", *PAGE_PATHS})
_MAX_HEADERS = 100
_SHOWN_HEADERS = ["x-request-id", "retry-after"] + [
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
]


class Edge:
    """The outermost layer of the application; ``paths`` are those that are counted by name."""

    def __init__(self, app: ASGIApp, gateway: Gateway, paths: frozenset[str]) -> None:
        self._app = app
        self._gateway = gateway
        self._paths = paths
        self._entry: ASGIApp = self._handle
        if origins := gateway.settings.cors_origins:
            self._entry = CORSMiddleware(
                self._handle, allow_origins=origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"],
                expose_headers=_SHOWN_HEADERS,
            )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection or request."""
        await (self._entry if scope["type"] == "http" else self._app)(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        record = Record(request_id(headers.get("x-request-id")), scope["method"], scope["path"])
        current.set(record)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                _mark(MutableHeaders(scope=message), record)
            await send(message)

        if self._gateway.settings.log_prompts:
            record.body = bytearray()
            receive = _kept(receive, record)
        try:
            with self._gateway.running(record), self._traced(record, headers):
                try:
                    _check_head(scope, headers)
                    self._check_caller(scope["method"], headers)
                    self._admit(record, headers)
                    await self._app(scope, receive, send_marked)
                except Exception as error:
                    if record.status is not None:
                        raise
                    await error_response(error, scope["path"])(scope, receive, send_marked)
        finally:
            # Only known paths, for every label is kept forever.
            status = _CLIENT_LEFT if record.status is None else record.status
            endpoint = record.path if record.path in self._paths else "other"
            self._gateway.metrics.answered(record.method, endpoint, status, time.monotonic() - record.arrived)
            log_request(record, status)

    def _admit(self, record: Record, headers: Headers) -> None:
        """Ask for the key, except where a load balancer or a browser has none, and take the request into account."""
        callers = self._gateway.callers
        if callers is not None and record.path not in _OPEN_PATHS:
            record.key = callers.identify(headers)
        if record.method in _SAFE_METHODS:
            return
        try:
            self._gateway.queue(record)
            if callers is not None and record.key is not None:
                record.allowance = callers.admit(record.key)
        except ApiError as error:
            self._gateway.metrics.refused(error.code or "other")
            raise

    @contextlib.contextmanager
    def _traced(self, record: Record, headers: Headers) -> Iterator[None]:
        tracer = self._gateway.tracer
        if tracer is None:
            yield
            return
        with tracer.span(record, headers):
            yield

    def _check_caller(self, method: str, headers: Headers) -> None:
        """Keep other web pages out: by name where a server on loopback could be rebound, by origin everywhere."""
        settings = self._gateway.settings
        allowed = settings.allowed_hosts
        host = headers.get("host", "")
        if allowed is not None and _hostname(host) not in allowed:
            message = f"The host name {quoted(host)} is not served here; use {min(allowed)!r}, or allow it."
            raise ApiError(403, message, code="host_not_allowed")
        if method in _SAFE_METHODS or not _is_cross_origin(headers, host):
            return
        if "*" not in settings.cors_origins and headers.get("origin") not in settings.cors_origins:
            message = (
                "The request comes from a web page of another origin; send it from this server's own page or a program."
            )
            raise ApiError(403, message, code="cross_origin")


def _check_head(scope: Scope, headers: Headers) -> None:
    """Bound the head, which the connection does only while one is incomplete, and refuse two lengths of one body."""
    if len(headers.raw) > _MAX_HEADERS:
        raise ApiError(431, f"The request has more than {_MAX_HEADERS} headers; send fewer.")
    target = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if target + sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEAD_BYTES:
        raise ApiError(431, f"The request's path and headers have more than {MAX_HEAD_BYTES} bytes; send less.")
    if "transfer-encoding" in headers and "content-length" in headers:
        # A proxy may go by the other one, and take the rest of this body for another's request (RFC 9112, 6.1).
        message = "The request has both Content-Length and Transfer-Encoding; send one of them."
        raise ApiError(400, message, headers={"Connection": "close"})


def _mark(headers: MutableHeaders, record: Record) -> None:
    headers["X-Request-Id"] = record.id
    headers["X-Content-Type-Options"] = "nosniff"
    if record.allowance is not None:
        headers.update(record.allowance.headers())


def _kept(receive: Receive, record: Record) -> Receive:
    async def kept() -> Message:
        message = await receive()
        record.keep_body(message.get("body", b""))
        return message

    return kept


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_cross_origin(headers: Headers, host: str) -> bool:
    # Browsers send Sec-Fetch-Site where they can, and it holds behind proxies that change the host; else Origin.
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.lower().partition("://")[2] != host.lower()
