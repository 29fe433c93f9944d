"""Harmony, gpt-oss's channels: thoughts, answers and calls as messages of one turn.

Source: OpenAI's "harmony response format" guide.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tuneserve.text.tools._calls import Calls, Reading, held_back
from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import Content, Event, Reasoning, Said
from tuneserve.text.tools._format import Reader
from tuneserve.text.tools._json import read_arguments, read_space
from tuneserve.text.tools._rules import either, literal, marker, schemas

MARKERS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_SPLIT = re.compile("|".join(map(re.escape, MARKERS)))
_CLOSING = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"to=([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_MAX_HEADER = 1000


@dataclass(frozen=True)
class Harmony:
    """A call is a message to ``functions.name``; :class:`HarmonyScanner` reads them."""

    tokens: Mapping[str, int]
    name: str = "harmony"
    starts: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:  # noqa: ARG002
        """Return a reader of no call."""
        yield
        return False

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:  # noqa: ARG002 - one call a turn
        """Return lark rules of ``calls``, which is one call, behind thoughts or not; a turn has no more."""
        start, channel, constrain, message, end, _, _ = (marker(text, self.tokens) for text in MARKERS)
        head = [literal(f"commentary to=functions.{tool.name} ") for tool in tools]
        bodies = [f'{channel} {text} {constrain} "json" {message} args_{index}' for index, text in enumerate(head)]
        thoughts = f'thoughts: {channel} "analysis" {message} /(?s:.*)/ {end} {start} "assistant"\n'
        return "calls: thoughts? call\n" + thoughts + either("call", bodies) + schemas(tools)


class HarmonyScanner:
    """Splits a turn into thoughts, content and calls; ``prompt`` shows where the turn was begun."""

    def __init__(self, tools: Mapping[str, ToolDefinition], calls: bool, prompt: str) -> None:
        self._tools = tools
        self._with_calls = calls
        self._held = ""
        self._kind = "header"
        self._header: list[str] = []
        self._size = 0
        self._reading: Reading | None = None
        self._calls = Calls()
        self._events: list[Event] = []
        self.push(prompt[begin:] if (begin := prompt.rfind("<|start|>")) >= 0 else "")

    def push(self, text: str) -> list[Event]:
        """Take more of the turn and return what is final with it."""
        text, self._held, at = self._held + text, "", 0
        for match in _SPLIT.finditer(text):
            self._text(text[at : match.start()])
            self._marker(match.group())
            at = match.end()
        kept = len(text) - min(held_back(text, MARKERS), len(text) - at)
        self._text(text[at:kept])
        self._held = text[kept:]
        return self._taken()

    def finish(self) -> list[Event]:
        """Return what was held back."""
        self._text(self._held)
        self._held = ""
        if self._kind == "header":
            self._drop_header()
        self._close()
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _text(self, text: str) -> None:
        if not text:
            return
        if self._kind == "header":
            self._header.append(text)
            self._size += len(text)
            if self._size > _MAX_HEADER:
                self._drop_header()
                self._kind = "content"
        elif self._reading is not None:
            self._read(self._reading, text)
        else:
            self._events.append(Reasoning(text) if self._kind == "reasoning" else Content(text))

    def _marker(self, text: str) -> None:
        if self._kind == "header":
            if text == "<|message|>":
                self._open()
            elif text == "<|start|>" or text in _CLOSING:
                self._drop_header()
            else:
                self._text(text)
        elif text == "<|start|>" or text in _CLOSING:
            self._close()
        else:
            self._text(text)

    def _open(self) -> None:
        header = "".join(self._header)
        self._header, self._size = [], 0
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        name = self._function(recipient.group(1)) if recipient and self._with_calls else None
        self._kind = "reasoning" if not recipient and channel and channel.group(1) == "analysis" else "content"
        if name is not None:
            self._reading = Reading(partial(_read_body, name), f"{header}<|message|>")
        elif recipient:
            self._text(f"{header}<|message|>")

    def _read(self, reading: Reading, text: str) -> None:
        end, said = reading.push(text, 0)
        self._events += self._calls.events(said)
        if reading.ended:
            self._reading = None
            self._text(reading.unsaid + text[end:])

    def _function(self, recipient: str) -> str | None:
        if recipient.startswith("functions."):
            return recipient.removeprefix("functions.") or None
        return recipient if recipient in self._tools else None

    def _drop_header(self) -> None:
        """Forget a header that no message follows; what is more than a role was said."""
        header = "".join(self._header)
        self._header, self._size = [], 0
        if header.strip() not in ("", "assistant"):
            self._events.append(Content(header))

    def _close(self) -> None:
        if self._reading is not None:
            self._reading.close()
            rest, self._reading = self._reading.unsaid, None
            # Blanks behind the arguments are nothing.
            self._text(rest if rest.strip() else "")
        self._kind, self._header, self._size = "header", [], 0


def _read_body(name: str, said: list[Said]) -> Reader:
    """Read the message that is a call: the object of its arguments, behind which are only blanks."""
    if (yield from read_space()) != "{" or not (yield from read_arguments(said, name)):
        return False
    yield from read_space()
    return False
