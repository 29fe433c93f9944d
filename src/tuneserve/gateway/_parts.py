"""What an answer consists of, in the order in which it comes, and what has come of it so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from tuneserve.engines.contract import TokenLogprob
from tuneserve.gateway._generate import Piece, ScoredToken
from tuneserve.text.tools import CallArguments, Content, Reasoning


@dataclass(frozen=True)
class CallStart:
    """The model begins to call a function; ``index`` counts its calls."""

    index: int
    name: str
    id: str


Part = Content | Reasoning | CallStart | CallArguments


class Reader(Protocol):
    """Takes the text of one sample apart."""

    def push(self, text: str) -> list[Part]:
        """Take more text and return what is certain with it."""

    def finish(self) -> list[Part]:
        """Return what was held back."""


class PlainReader:
    """All text is what the model says."""

    def push(self, text: str) -> list[Part]:
        """Return the text."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Return nothing."""
        return []


@dataclass
class Call:
    """A call of a function."""

    name: str
    id: str
    arguments: str = ""

    def decoded(self) -> dict[str, Any] | None:
        """Return the arguments; None where the model got them wrong or broke off, so that they are no object."""
        try:
            value = msgspec.json.decode(self.arguments)
        except (msgspec.DecodeError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


@dataclass
class Sample:
    """What has come of one sample; ``reason`` says why it ended, ``stop`` is the stop string that ended it.

    ``prompt`` are the log-probabilities of the tokens of its prompt but the first.
    """

    reader: Reader
    prompt_ids: list[int]
    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    prompt: tuple[TokenLogprob, ...] | None = None
    cached: int | None = None
    reason: str | None = None
    stop: str | None = None
    ids: list[int] = field(default_factory=list)
    reasoning_tokens: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.ids)

    def take(self, piece: Piece) -> list[Part]:
        """Note a piece and return the parts that it brings."""
        parts = self.reader.push(piece.text)
        if piece.finish_reason is not None:
            parts += self.reader.finish()
        for part in parts:
            self._add(part)
        self.ids += piece.ids
        if self.reasoning and not self.text and not self.calls:
            self.reasoning_tokens = self.tokens
        self.scored += piece.scored
        self.prompt = self.prompt if piece.prompt is None else piece.prompt
        self.cached = self.cached if piece.cached is None else piece.cached
        self.stop = piece.stop
        self.reason = "tool_calls" if piece.finish_reason == "stop" and self.calls else piece.finish_reason
        return parts

    def _add(self, part: Part) -> None:
        match part:
            case Content(text):
                self.text += text
            case Reasoning(text):
                self.reasoning += text
            case CallStart(_, name, call_id):
                self.calls.append(Call(name, call_id))
            case CallArguments(index, text):
                self.calls[index].arguments += text


def joined(parts: Sequence[Part], kind: type[Content] | type[Reasoning]) -> str:
    """Return the text of the parts of one kind."""
    return "".join(part.text for part in parts if isinstance(part, kind))


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess."""
    return f"{prefix}_{uuid4().hex}"
