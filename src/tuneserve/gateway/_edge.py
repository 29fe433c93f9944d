"""What happens to every HTTP request, whatever its path: who may ask, counting, and errors in one form."""

import time
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneserve.gateway._errors import ApiError, quoted
from tuneserve.gateway._refusal import error_response
from tuneserve.gateway._state import Gateway

_CLIENT_LEFT = 499
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Edge:
    """The outermost layer of the application; ``paths`` are those that are counted by name."""

    def __init__(self, app: ASGIApp, gateway: Gateway, paths: frozenset[str]) -> None:
        self._app = app
        self._gateway = gateway
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection or request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = _CLIENT_LEFT

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = f"req_{uuid4().hex}"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            with self._gateway.running():
                try:
                    self._check_caller(scope["method"], Headers(scope=scope))
                    await self._app(scope, receive, send_marked)
                except Exception as error:
                    if status != _CLIENT_LEFT:
                        raise
                    await error_response(error, scope["path"])(scope, receive, send_marked)
        finally:
            # Only known paths, for every label is kept forever.
            endpoint = scope["path"] if scope["path"] in self._paths else "other"
            self._gateway.metrics.answered(endpoint, status, time.monotonic() - started)

    def _check_caller(self, method: str, headers: Headers) -> None:
        """Keep other web pages out: by name where a server on loopback could be rebound, by origin everywhere."""
        allowed = self._gateway.settings.allowed_hosts
        host = headers.get("host", "")
        if allowed is not None and _hostname(host) not in allowed:
            message = f"The host name {quoted(host)} is not served here; use {min(allowed)!r}, or allow it."
            raise ApiError(403, message, code="host_not_allowed")
        if method not in _SAFE_METHODS and _is_cross_origin(headers, host):
            message = (
                "The request comes from a web page of another origin; send it from this server's own page or a program."
            )
            raise ApiError(403, message, code="cross_origin")


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
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()
