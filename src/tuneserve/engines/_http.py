"""Requests to an engine's HTTP server: streams with bounds, and every failure as the contract's errors."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tuneserve.client import ProtocolError, SseParser
from tuneserve.errors import EngineError, RequestError

_CONNECT_SECONDS = 10.0
_MAX_EVENT_BYTES = 64 * 2**20
_MAX_ANSWER_BYTES = 64 * 2**20
_MAX_SHOWN = 500
# What engines answer to a request that is at fault itself.
_AT_FAULT = (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY)


class EngineClient:
    """Requests to the server at ``address()``, which raises EngineError while there is none.

    Closing the generator of a stream closes its connection, by which engines notice that nobody listens any more.
    """

    def __init__(self, engine: str, address: Callable[[], str], headers: Mapping[str, str] | None = None) -> None:
        self._engine = engine
        self._address = address
        # Neither proxies nor credentials of the environment: what listens is on this machine. The gateway limits how
        # many requests there are, and an engine may think for minutes before its first token.
        self._client = httpx.AsyncClient(
            headers=dict(headers or {}),
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def json(self, method: str, path: str, body: object = None) -> Any:
        """Return the decoded answer.

        Raises:
            RequestError: the request is at fault.
            EngineError: there was no answer, or not one in JSON.
        """
        async with self._open(method, path, body) as response:
            return self._decode(await self._read(response))

    async def text(self, path: str) -> str:
        """Return the answer to a GET as it is; raises as :meth:`json`."""
        async with self._open("GET", path, None) as response:
            return (await self._read(response)).decode("utf-8", errors="replace")

    async def events(self, path: str, body: object) -> AsyncGenerator[Any, None]:
        """Yield the decoded data of each server-sent event of the answer to a POST, up to ``[DONE]``.

        Raises:
            RequestError: the request is at fault.
            EngineError: there was no answer, it broke off, or it is not in JSON.
        """
        parser = SseParser(_MAX_EVENT_BYTES)
        async with self._open("POST", path, body) as response:
            async for chunk in response.aiter_raw():
                for data in parser.feed(chunk):
                    if data == "[DONE]":
                        return
                    yield self._decode(data)

    async def lines(self, path: str, body: object) -> AsyncGenerator[Any, None]:
        """Yield each line of an answer in JSON lines; raises as :meth:`events`."""
        rest = bytearray()
        async with self._open("POST", path, body) as response:
            async for chunk in response.aiter_raw():
                rest += chunk
                *lines, last = rest.split(b"\n")
                rest = last
                if len(rest) > _MAX_EVENT_BYTES:
                    raise self._nonsense()
                for line in lines:
                    if line.strip():
                        yield self._decode(line)
        if rest.strip():
            yield self._decode(rest)

    @asynccontextmanager
    async def _open(self, method: str, path: str, body: object) -> AsyncIterator[httpx.Response]:
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {"Accept-Encoding": "identity"} | ({} if body is None else {"Content-Type": "application/json"})
        url = self._address() + path
        try:
            async with self._client.stream(method, url, content=content, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._refusal(response.status_code, await self._read(response))
                yield response
        except httpx.HTTPError as error:
            self._address()  # says more, where the engine is known to have died
            raise EngineError(
                f"{self._engine} broke off the connection ({str(error) or type(error).__name__}); try again."
            ) from None
        except ProtocolError:
            raise self._nonsense() from None

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > _MAX_ANSWER_BYTES:
                raise self._nonsense()
        return bytes(body)

    def _refusal(self, status: int, body: bytes) -> Exception:
        message = " ".join(_message(body).split())[:_MAX_SHOWN].rstrip(".") or f"status {status}"
        if status in _AT_FAULT:
            return RequestError(f"{self._engine} refused the request: {message}.", _param(body))
        return EngineError(f"{self._engine} answered with status {status}: {message}.")

    def _decode(self, data: str | bytes | bytearray) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._nonsense() from None

    def _nonsense(self) -> EngineError:
        return EngineError(f"{self._engine} sent an answer that cannot be read; check its version and its log.")


def _message(body: bytes) -> str:
    """Return the message of an error, in the forms in which engines give it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body[:_MAX_SHOWN].decode("utf-8", errors="replace")
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    if isinstance(value, dict) and "message" in value:
        value = value["message"]
    return value if isinstance(value, str) else json.dumps(value)


def _param(body: bytes) -> str | None:
    """Return what OpenAI's form of an error calls the parameter at fault, if it names one."""
    try:
        error = json.loads(body)["error"]
        return error["param"] if isinstance(error["param"], str) else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
