"""HTTP as this client needs it: bounded answers, and every failure in one sentence."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from tuneserve.client._errors import ProtocolError, TransportError, api_error, quoted
from tuneserve.client._sse import SseParser
from tuneserve.errors import InputError

_CONNECT_SECONDS = 10.0
_MAX_ANSWER_BYTES = 64 * 2**20
_EVENT_STREAM = "text/event-stream"
_LAST_PORT = 65535


@dataclass(frozen=True)
class RawResponse:
    """An answer as it came, whatever its status."""

    status: int
    content_type: str
    body: bytes


class Connection:
    """Requests to one server; ``timeout`` is in seconds, for each wait for the next bytes."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float) -> None:
        self.root = _root(base_url)
        headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {_checked_key(api_key)}"
        if not timeout > 0:
            raise InputError(f"timeout is {timeout:g} seconds; choose one above 0.")
        self._timeout = timeout
        try:
            self._client = httpx.Client(
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
                # Whoever asks from many threads at once means it: by default the 101st would wait for another.
                limits=httpx.Limits(),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise InputError(
                f"the proxy that the environment names cannot be used ({error}); correct or unset HTTP_PROXY, "
                "HTTPS_PROXY and ALL_PROXY."
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(self, method: str, path: str, body: bytes | None = None) -> RawResponse:
        """Return the answer to one request.

        Raises:
            TransportError: there was none.
            ProtocolError: it is too large or cannot be decoded.
        """
        with self._open(method, path, body) as response:
            return _read(response)

    def events(self, path: str, body: bytes) -> Generator[str, None, None]:
        """Yield the data of each event of the answer to a POST.

        Raises:
            TransportError: there was no answer, or it broke off.
            ApiError: the status is 400 or above.
            ProtocolError: the answer is no event stream.
        """
        with self._open("POST", path, body) as response:
            if response.status_code != httpx.codes.OK:
                answer = _read(response)
                raise_for_status(answer, self.root + path)
            kind = response.headers.get("content-type", "")
            if kind.partition(";")[0].strip().lower() != _EVENT_STREAM:
                raise ProtocolError(
                    f"{self.root}{path} answered {quoted(kind) or 'without a content type'} instead of "
                    f"{_EVENT_STREAM}; check that the server can stream."
                )
            parser = SseParser()
            for chunk in response.iter_bytes():
                yield from parser.feed(chunk)

    @contextmanager
    def _open(self, method: str, path: str, body: bytes | None) -> Iterator[httpx.Response]:
        headers = None if body is None else {"Content-Type": "application/json"}
        with (
            self._translated(),
            self._client.stream(method, self.root + path, content=body, headers=headers) as response,
        ):
            yield response

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectTimeout:
            raise TransportError(
                f"{self.root} could not be reached in time; check the address and that the server is running."
            ) from None
        except httpx.TimeoutException:
            raise TransportError(
                f"{self.root} was silent for {self._timeout:g} seconds; see the server's log, or wait longer."
            ) from None
        except httpx.ProxyError as error:
            raise TransportError(
                f"the proxy on the way to {self.root} refused ({quoted(str(error))}); correct HTTP_PROXY and "
                "HTTPS_PROXY, or name the host in NO_PROXY."
            ) from None
        except (httpx.ConnectError, httpx.UnsupportedProtocol, UnicodeError) as error:
            raise TransportError(
                f"{self.root} cannot be reached ({quoted(str(error))}); check the address and that the server is "
                "running."
            ) from None
        except httpx.DecodingError as error:
            raise ProtocolError(
                f"{self.root} sent an answer that cannot be decompressed ({quoted(str(error))}); see the server's log."
            ) from None
        except httpx.TransportError as error:
            raise TransportError(
                f"{self.root} broke off the connection ({quoted(str(error)) or type(error).__name__}); see the "
                "server's log."
            ) from None


def raise_for_status(answer: RawResponse, url: str) -> None:
    """Return if the status is 200.

    Raises:
        ApiError: it is 400 or above.
        ProtocolError: it is anything else.
    """
    if answer.status >= httpx.codes.BAD_REQUEST:
        raise api_error(answer.status, answer.body)
    if answer.status != httpx.codes.OK:
        raise ProtocolError(f"{url} answered with status {answer.status}; give the URL that it redirects to, if any.")


def encode(fields: Mapping[str, object]) -> bytes:
    """Return a request body.

    Raises:
        InputError: something in it has no form in JSON.
    """
    try:
        return json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the request cannot be written as JSON ({error}); use text, finite numbers, lists and dictionaries."
        ) from None


def _read(response: httpx.Response) -> RawResponse:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise ProtocolError(
                f"{response.url} answered with more than {_MAX_ANSWER_BYTES} bytes; ask it for less, or check that "
                "the URL is an OpenAI-compatible server."
            )
    return RawResponse(response.status_code, response.headers.get("content-type", ""), bytes(body))


def _root(base_url: str) -> str:
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL as error:
        raise InputError(f"{base_url!r} is no URL ({error}); give one like http://localhost:8000.") from None
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > _LAST_PORT:
        raise InputError(f"{base_url!r} is no HTTP address; give one like http://localhost:8000.")
    if url.userinfo:
        raise InputError("the URL contains a user name or a password; leave them out and give an API key.")
    if url.query or url.fragment:
        raise InputError(f"{base_url!r} has a query or a fragment; leave them out.")
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")


def _checked_key(api_key: str) -> str:
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise InputError("the API key is empty, or has spaces or characters that are not ASCII; copy it again.")
    return api_key
