"""``/v1/chat/completions``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from tuneserve.gateway._generate import Piece, ScoredToken
from tuneserve.gateway._logprobs import TokenNames, chat_logprobs
from tuneserve.gateway._parts import CallStart, Part, Sample
from tuneserve.gateway._shapes import Event, Json, Shape, Usage
from tuneserve.gateway.chat._usage import usage_of
from tuneserve.text.tools import CallArguments, Content, Reasoning


@dataclass
class ChatShape(Shape):
    """One chat completion; all chunks share their id and time. ``top_logprobs`` None is without log-probabilities."""

    model: str
    names: TokenNames
    top_logprobs: int | None = None
    include_usage: bool = False
    service_tier: str | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    ending = b"data: [DONE]\n\n"
    _opened: set[int] = field(default_factory=set)

    def events(self, index: int, sample: Sample, piece: Piece, parts: Sequence[Part]) -> Sequence[Event]:
        """Return the chunks with what is new, before the first one with the role."""
        scored = piece.scored
        deltas = [_delta(part) for part in parts]
        if scored and not deltas:
            deltas = [{}]
        events = []
        if index not in self._opened:
            self._opened.add(index)
            events.append(self._chunk(index, {"role": "assistant", "content": ""}, (), None))
        for delta in deltas:
            events.append(self._chunk(index, delta, scored, None))
            scored = ()
        if sample.reason is not None:
            events.append(self._chunk(index, {}, (), sample.reason))
        return events

    def end(self, samples: Sequence[Sample], usage: Usage) -> Sequence[Event]:  # noqa: ARG002
        """Return the chunk with the usage, where it was asked for."""
        return [Event(self._object("chat.completion.chunk", [], usage_of(usage)))] if self.include_usage else []

    def whole(self, samples: Sequence[Sample], usage: Usage) -> Json:
        """Return the chat completion."""
        return self._object("chat.completion", [self._choice(*each) for each in enumerate(samples)], usage_of(usage))

    def _choice(self, index: int, sample: Sample) -> Json:
        message: Json = {"role": "assistant", "content": sample.text, "refusal": None}
        if sample.reasoning:
            message["reasoning_content"] = sample.reasoning
        if sample.calls:
            message["content"] = sample.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in sample.calls
            ]
        logprobs = self._logprobs(sample.scored)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": sample.reason}

    def _chunk(self, index: int, delta: Json, scored: Sequence[ScoredToken], reason: str | None) -> Event:
        logprobs = self._logprobs(scored) if scored else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return Event(self._object("chat.completion.chunk", [choice], None))

    def _logprobs(self, scored: Sequence[ScoredToken]) -> Json | None:
        return None if self.top_logprobs is None else chat_logprobs(self.names, scored, self.top_logprobs)

    def _object(self, kind: str, choices: list[Json], usage: Json | None) -> Json:
        tier = {} if self.service_tier is None else {"service_tier": self.service_tier}
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **tier,
            "usage": usage,
        }


def _delta(part: Part) -> Json:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallStart(index, name, call_id):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
