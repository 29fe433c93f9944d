"""Responses that can be gone on from and looked up, in memory and bounded."""

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from tuneserve.gateway._errors import ApiError, quoted
from tuneserve.gateway._shapes import Json
from tuneserve.gateway.schemas import Message

_MAX_RESPONSES = 1_000
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A response, the conversation up to its end without instructions, and whose it is."""

    response: Json
    messages: tuple[Message, ...]
    owner: bytes


class ResponseStore:
    """The latest responses: those used least recently go first when there are too many, or too many bytes."""

    def __init__(self, max_responses: int = _MAX_RESPONSES, max_bytes: int = _MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._bytes = 0

    def put(self, stored: Stored) -> None:
        """Keep a response."""
        size = len(msgspec.json.encode(stored.response)) + sum(
            len(message.model_dump_json()) for message in stored.messages
        )
        self._entries[stored.response["id"]] = (stored, size)
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._entries) > self._max_responses:
            _, (_, freed) = self._entries.popitem(last=False)
            self._bytes -= freed

    def get(self, name: str, owner: bytes, param: str | None = None) -> Stored:
        """Return a response.

        Raises:
            ApiError: there is none of this owner's (any more).
        """
        found = self._entries.get(name)
        if found is None or found[0].owner != owner:
            message = f"There is no response {quoted(name)} here (any more); send the conversation itself as 'input'."
            raise ApiError(400 if param else 404, message, param=param, code="previous_response_not_found")
        self._entries.move_to_end(name)
        return found[0]

    def delete(self, name: str, owner: bytes) -> None:
        """Forget a response.

        Raises:
            ApiError: there is none of this owner's (any more).
        """
        self.get(name, owner)
        self._bytes -= self._entries.pop(name)[1]
