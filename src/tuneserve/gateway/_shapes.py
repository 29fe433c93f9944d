"""The two shapes an answer can have, whole and in chunks."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import uuid4

Json = dict[str, Any]


@dataclass
class Result:
    """What one prompt was answered with."""

    text: str = ""
    finish_reason: str | None = None


def usage_of(prompt_tokens: int, completion_tokens: int) -> Json:
    """Return the ``usage`` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True)
class Shape(ABC):
    """How one API says what was generated; all chunks of an answer share their id and time."""

    model: str
    unique: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """Return the chunk that announces a choice, where there is one."""

    @abstractmethod
    def chunk(self, index: int, text: str | None, reason: str | None) -> Json:
        """Return the chunk that carries text, or with None the one that says why the choice ended."""

    @abstractmethod
    def choice(self, index: int, result: Result) -> Json:
        """Return one choice of the answer in one piece."""

    def whole(self, results: list[Result], usage: Json) -> Json:
        """Return the answer in one piece."""
        return self._object(self.kind, [self.choice(*each) for each in enumerate(results)], usage)

    def usage(self, usage: Json) -> Json:
        """Return the chunk without choices that comes last."""
        return self._object(self.chunk_kind, [], usage)

    def _object(self, kind: str, choices: list[Json], usage: Json | None) -> Json:
        return {
            "id": f"{self.prefix}-{self.unique}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage,
        }


class ChatShape(Shape):
    """``/v1/chat/completions``."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self, index: int) -> Json | None:
        """Return the chunk with the role."""
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def chunk(self, index: int, text: str | None, reason: str | None) -> Json:
        """Return a chunk with a delta."""
        return self._delta(index, {} if text is None else {"content": text}, reason)

    def choice(self, index: int, result: Result) -> Json:
        """Return the message."""
        message = {"role": "assistant", "content": result.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": result.finish_reason}

    def _delta(self, index: int, delta: Json, reason: str | None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._object(self.chunk_kind, [choice], None)


class CompletionShape(Shape):
    """``/v1/completions``."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def opening(self, index: int) -> Json | None:  # noqa: ARG002
        """Return None: text comes at once."""
        return None

    def chunk(self, index: int, text: str | None, reason: str | None) -> Json:
        """Return a chunk with text."""
        return self._object(self.chunk_kind, [self.choice(index, Result(text or "", reason))], None)

    def choice(self, index: int, result: Result) -> Json:
        """Return the text."""
        return {"index": index, "text": result.text, "logprobs": None, "finish_reason": result.finish_reason}
