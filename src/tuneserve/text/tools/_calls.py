"""Calls found in an answer as it comes."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import CallArguments, CallStarted, Content, Event, Said
from tuneserve.text.tools._format import Reader, ToolFormat

_SPACE = re.compile(r"\s*")


def held_back(text: str, markers: tuple[str, ...]) -> int:
    """Return how many characters at the end of ``text`` may begin one of ``markers``."""
    longest = max(map(len, markers), default=1) - 1
    return next(
        (size for size in range(min(longest, len(text)), 0, -1) if any(m.startswith(text[-size:]) for m in markers)), 0
    )


class Calls:
    """Makes events of what readers say, and counts the calls."""

    def __init__(self) -> None:
        self.count = 0

    def events(self, said: Sequence[Said]) -> list[Event]:
        """Return the events of it."""
        events: list[Event] = []
        pieces: list[str] = []
        for each in said:
            if isinstance(each, str):
                pieces.append(each)
                continue
            if pieces:
                events.append(CallArguments(self.count - 1, "".join(pieces)))
            events.append(CallStarted(self.count, each.name))
            pieces = [each.arguments]
            self.count += 1
        return [*events, CallArguments(self.count - 1, "".join(pieces))] if pieces else events


class Reading:
    """A reader at work, from ``begin`` on, which it does not get. ``unsaid`` is what is in no call of all it read."""

    def __init__(self, read: Callable[[list[Said]], Reader], begin: str) -> None:
        self.ended = False
        self._said: list[Said] = []
        self._unsaid = [begin]
        self._reader = read(self._said)
        next(self._reader)

    @property
    def unsaid(self) -> str:
        """That text."""
        return "".join(self._unsaid)

    def push(self, text: str, at: int) -> tuple[int, list[Said]]:
        """Read ``text`` from ``at`` on; return where that ended, and what is certain with it."""
        self._said.clear()
        end = len(text)
        for index in range(at, len(text)):
            count = len(self._said)
            try:
                self._reader.send(text[index])
            except StopIteration as stop:
                self.ended, end = True, index + stop.value
                if stop.value:
                    self._unsaid.clear()
                    at = end
                break
            if len(self._said) > count:
                self._unsaid.clear()
                at = index + 1
        self._unsaid.append(text[at:end])
        return end, self._said

    def close(self) -> None:
        """Read no further."""
        self._reader.close()


class CallScanner:
    """Splits an answer into content and calls.

    A call's arguments come out as they come in; what turns out to be no call, before any of it is out, is content. Time
    is linear in the text: what has been read as a call is not read again.
    """

    def __init__(self, form: ToolFormat, tools: Mapping[str, ToolDefinition]) -> None:
        self._form = form
        self._tools = tools
        self._start = re.compile("|".join(map(re.escape, form.starts)) or r"(?!)")
        self._held = ""
        # At an edge, where the answer begins or a call has ended, blanks are kept until it is clear what follows.
        self._edge = True
        self._blanks: list[str] = []
        self._reading: Reading | None = None
        self._calls = Calls()
        self._events: list[Event] = []

    def push(self, text: str) -> list[Event]:
        """Take more of the answer and return what is final with it."""
        text, self._held, at = self._held + text, "", 0
        while at < len(text):
            if self._reading is not None:
                at = self._read(self._reading, text, at)
            elif self._edge:
                at = self._at_edge(text, at)
            else:
                at = self._in_content(text, at)
        return self._taken()

    def finish(self) -> list[Event]:
        """Return what was held back."""
        rest = "".join(self._blanks) + self._held
        if self._reading is not None:
            self._reading.close()
            rest += self._reading.unsaid
        if rest.strip() or not self._calls.count:
            self._content(rest)
        self._blanks, self._held, self._reading = [], "", None
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _content(self, text: str) -> None:
        if text:
            self._events.append(Content(text))

    def _read(self, reading: Reading, text: str, at: int) -> int:
        end, said = reading.push(text, at)
        self._events += self._calls.events(said)
        if reading.ended:
            self._reading, self._edge = None, not reading.unsaid.strip()
            if self._edge:
                self._blanks = [reading.unsaid]
            else:
                self._content(reading.unsaid)
        return end

    def _at_edge(self, text: str, at: int) -> int:
        match = _SPACE.match(text, at)
        begin = match.end() if match else at
        self._blanks.append(text[at:begin])
        if begin == len(text):
            return begin
        ends = self._form.ends if self._calls.count else ()
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
            self._content("".join(self._blanks))
            self._blanks = []
            return begin
        if found in ends:
            self._blanks = []
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
        begin = "".join(self._blanks) + start
        self._blanks = []
        self._reading = Reading(partial(self._form.read, start, self._tools), begin)
