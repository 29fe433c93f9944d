"""Server-sent events, read strictly (WHATWG HTML, section 9.2 "Server-sent events")."""

import re

from tuneserve.client._errors import ProtocolError

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_EVENT_BYTES = 8 * 2**20


class SseParser:
    """Turns bytes, cut anywhere, into the ``data`` of each event; other fields and comments carry nothing we need.

    An event that the stream ends in the middle of is dropped, as the standard says. One event takes at most
    ``max_event_bytes``, so that a server cannot fill the memory.
    """

    def __init__(self, max_event_bytes: int = _MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_return = False
        self._first_line = True

    def feed(self, chunk: bytes) -> list[str]:
        """Take the next bytes and return the events they complete.

        Raises:
            ProtocolError: an event is too large or not UTF-8; the stream cannot be read further.
        """
        if self._after_return and chunk:
            # The line feed of a CRLF that was cut in two ends no second line.
            chunk = chunk.removeprefix(b"\n")
            self._after_return = False
        if not chunk:
            return []
        self._after_return = chunk.endswith(b"\r")
        *ends, rest = _LINE_END.split(chunk)
        events: list[str] = []
        for end in ends:
            self._extend(end)
            line = bytes(self._line)
            self._line.clear()
            self._take(line, events)
        self._extend(rest)
        return events

    def _extend(self, part: bytes) -> None:
        if self._data_bytes + len(self._line) + len(part) > self._limit:
            raise ProtocolError(
                f"the server sent an event larger than {self._limit} bytes; ask it for less, or check that the URL "
                "is an OpenAI-compatible server."
            )
        self._line += part

    def _take(self, line: bytes, events: list[str]) -> None:
        if self._first_line:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._first_line = False
        if not line:
            if self._data:
                events.append(_decode(b"\n".join(self._data)))
                self._data.clear()
                self._data_bytes = 0
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(line)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("the server sent an event that is not UTF-8; see the server's log.") from None
