"""Harmony, gpt-oss's channels: thoughts, answers and calls as messages of one turn.

Source: OpenAI's "harmony response format" guide.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneserve.text.tools._calls import held_back
from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import CallArguments, CallEnded, CallStarted, Content, Event, Reasoning
from tuneserve.text.tools._format import Reader
from tuneserve.text.tools._json import object_text
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

    def read(self, start: str, tools: Mapping[str, ToolDefinition]) -> Reader:  # noqa: ARG002
        """Return a reader of no call."""
        yield
        return None

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
        self._body: list[str] = []
        self._count = 0
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
        elif self._kind == "call":
            self._body.append(text)
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
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        if recipient and self._with_calls and self._function(recipient.group(1)):
            self._kind = "call"
        elif recipient:
            self._kind = "content"
            self._text(header + "<|message|>")
        else:
            self._kind = "reasoning" if channel and channel.group(1) == "analysis" else "content"
        if self._kind != "call":
            self._header, self._size = [], 0

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
        if self._kind == "call":
            header, body = "".join(self._header), "".join(self._body)
            recipient = _RECIPIENT.search(header)
            name = self._function(recipient.group(1)) if recipient else None
            arguments = object_text(body)
            if name is None or arguments is None:
                self._events.append(Content(f"{header}<|message|>{body}"))
            else:
                index = self._count
                self._count += 1
                self._events += [CallStarted(index, name), CallArguments(index, arguments), CallEnded(index)]
        self._kind, self._header, self._size, self._body = "header", [], 0, []
