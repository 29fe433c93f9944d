"""The client: one method per thing the API can do."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from tuneserve.client._errors import ProtocolError, parse_error, quoted
from tuneserve.client._http import Connection, RawResponse, encode, raise_for_status
from tuneserve.client._types import ChatChunk, ChatCompletion, Completion, CompletionChunk, Model
from tuneserve.errors import InputError

_CHAT = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"
_MODELS = "/v1/models"
_DONE = "[DONE]"
_T = TypeVar("_T")


class _ModelList(msgspec.Struct, frozen=True):
    data: list[Model]


class OpenAIClient:
    """A client of one server, for use in a ``with`` statement; methods may be called from several threads.

    ``base_url`` may end in ``/v1`` or not. ``timeout`` is how many seconds the server may be silent. ``fields`` of the
    methods go into the request as they are: ``max_tokens``, ``temperature``, ...

    Every method raises:
        InputError: the address, the key or a field can be no part of a request.
        TransportError: the server could not be reached, was silent too long, or broke off.
        ApiError: the server answered with an error.
        ProtocolError: the server's answer is not in the API's form.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 60.0) -> None:
        self._connection = Connection(base_url, api_key, timeout)

    @property
    def url(self) -> str:
        """The address, without ``/v1``."""
        return self._connection.root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def models(self) -> list[Model]:
        """Return the models that the server has."""
        return self._decode(self.get(_MODELS), _MODELS, _ModelList).data

    def chat(self, messages: Sequence[Mapping[str, Any]], *, model: str, **fields: Any) -> ChatCompletion:
        """Answer a conversation."""
        body = _body(fields, stream=False, model=model, messages=messages)
        return self._decode(self.post(_CHAT, body), _CHAT, ChatCompletion)

    def chat_stream(
        self, messages: Sequence[Mapping[str, Any]], *, model: str, **fields: Any
    ) -> Generator[ChatChunk, None, None]:
        """Answer a conversation piece by piece; closing the generator ends the request."""
        return self._stream(_CHAT, _body(fields, stream=True, model=model, messages=messages), ChatChunk)

    def completion(self, prompt: str | Sequence[int], *, model: str, **fields: Any) -> Completion:
        """Continue a text, or token ids."""
        body = _body(fields, stream=False, model=model, prompt=prompt)
        return self._decode(self.post(_COMPLETIONS, body), _COMPLETIONS, Completion)

    def completion_stream(
        self, prompt: str | Sequence[int], *, model: str, **fields: Any
    ) -> Generator[CompletionChunk, None, None]:
        """Continue a text, or token ids, piece by piece; closing the generator ends the request."""
        return self._stream(_COMPLETIONS, _body(fields, stream=True, model=model, prompt=prompt), CompletionChunk)

    def get(self, path: str) -> RawResponse:
        """Return whatever the server has at ``path``, which starts with a slash; no status is an error."""
        return self._connection.request("GET", path)

    def post(self, path: str, json: Mapping[str, Any] | bytes) -> RawResponse:
        """Return whatever the server answers at ``path``; bytes are sent as they are, and no status is an error."""
        return self._connection.request("POST", path, json if isinstance(json, bytes) else encode(json))

    def _stream(self, path: str, body: Mapping[str, Any], kind: type[_T]) -> Generator[_T, None, None]:
        decoder = msgspec.json.Decoder(kind)
        with closing(self._connection.events(path, encode(body))) as events:
            for data in events:
                if data == _DONE:
                    return
                try:
                    chunk = decoder.decode(data)
                except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                    raise parse_error(200, data.encode()) or self._malformed(path, error) from None
                yield chunk
        raise ProtocolError(f"{self.url}{path} ended its stream without {_DONE}; see the server's log.")

    def _decode(self, answer: RawResponse, path: str, kind: type[_T]) -> _T:
        raise_for_status(answer, self.url + path)
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise self._malformed(path, error) from None

    def _malformed(self, path: str, error: Exception) -> ProtocolError:
        return ProtocolError(
            f"{self.url}{path} did not answer in OpenAI's form ({quoted(str(error))}); check that the URL is an "
            "OpenAI-compatible server."
        )


def _body(fields: dict[str, Any], *, stream: bool, **own: Any) -> dict[str, Any]:
    if "stream" in fields:
        raise InputError("'stream' is not a field here; choose between the method with _stream and the one without.")
    return {**own, **fields, "stream": stream}
