"""Calls found in an answer as it comes."""

import re
from collections.abc import Mapping

from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import Call, CallArguments, CallEnded, CallStarted, Content, Event
from tuneserve.text.tools._format import Reader, ToolFormat

_SPACE = re.compile(r"\s*")


def held_back(text: str, markers: tuple[str, ...]) -> int:
    """Return how many characters at the end of ``text`` may begin one of ``markers``."""
    longest = max(map(len, markers), default=1) - 1
    return next(
        (size for size in range(min(longest, len(text)), 0, -1) if any(m.startswith(text[-size:]) for m in markers)), 0
    )


class CallScanner:
    """Splits an answer into content and calls.

    A call comes out once it is whole, so that what turns out to be none comes out as content. Time is linear in the
    text: what has been read as a call is not read again.
    """

    def __init__(self, form: ToolFormat, tools: Mapping[str, ToolDefinition]) -> None:
        self._form = form
        self._tools = tools
        self._start = re.compile("|".join(map(re.escape, form.starts)) or r"(?!)")
        self._held = ""
        # At an edge, where the answer begins or a call has ended, blanks are kept until it is clear what follows.
        self._edge = True
        self._raw: list[str] = []
        self._reader: Reader | None = None
        self._count = 0
        self._events: list[Event] = []

    def push(self, text: str) -> list[Event]:
        """Take more of the answer and return what is final with it."""
        text, self._held, at = self._held + text, "", 0
        while at < len(text):
            if self._reader is not None:
                at = self._read(self._reader, text, at)
            elif self._edge:
                at = self._at_edge(text, at)
            else:
                at = self._in_content(text, at)
        return self._taken()

    def finish(self) -> list[Event]:
        """Return what was held back."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        blank = not "".join(self._raw).strip()
        if not (blank and self._count and not self._held):
            self._content("".join(self._raw) + self._held)
        self._raw, self._held = [], ""
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _content(self, text: str) -> None:
        if text:
            self._events.append(Content(text))

    def _read(self, reader: Reader, text: str, at: int) -> int:
        for index in range(at, len(text)):
            try:
                reader.send(text[index])
            except StopIteration as stop:
                self._reader = None
                self._edge = stop.value is not None
                if stop.value is None:
                    self._content("".join(self._raw) + text[at:index])
                else:
                    self._calls(stop.value)
                self._raw = []
                return index + self._edge
        self._raw.append(text[at:])
        return len(text)

    def _calls(self, calls: list[Call]) -> None:
        for call in calls:
            index = self._count
            self._count += 1
            self._events += [CallStarted(index, call.name), CallArguments(index, call.arguments), CallEnded(index)]

    def _at_edge(self, text: str, at: int) -> int:
        match = _SPACE.match(text, at)
        begin = match.end() if match else at
        self._raw.append(text[at:begin])
        if begin == len(text):
            return begin
        ends = self._form.ends if self._count else ()
        markers = (*self._form.starts, *self._form.bare, *ends)
        found = next((marker for marker in markers if text.startswith(marker, begin)), None)
        if (
            found is None
            and len(text) - begin < max(map(len, markers))
            and held_back(text, markers) == len(text) - begin
        ):
            self._held = text[begin:]
            return len(text)
        if found is None:
            self._edge = False
            self._content("".join(self._raw))
            self._raw = []
            return begin
        if found in ends:
            self._raw = []
        else:
            self._open(found)
        return begin + len(found)

    def _in_content(self, text: str, at: int) -> int:
        match = self._start.search(text, at)
        if match is None:
            kept = len(text) - min(held_back(text, self._form.starts), len(text) - at)
            self._content(text[at:kept])
            self._held = text[kept:]
            return len(text)
        self._content(text[at : match.start()])
        self._open(match.group())
        return match.end()

    def _open(self, start: str) -> None:
        self._raw.append(start)
        self._reader = self._form.read(start, self._tools)
        next(self._reader)
