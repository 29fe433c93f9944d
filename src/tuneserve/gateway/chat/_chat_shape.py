"""``/v1/chat/completions``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from tuneserve.gateway._generate import Piece, ScoredToken
from tuneserve.gateway._logprobs import TokenNames, chat_logprobs
from tuneserve.gateway._parts import CallStart, Part, Sample
from tuneserve.gateway._shapes import Event, Json, Shape, Usage
from tuneserve.gateway.chat._extras import Extras, usage_of
from tuneserve.text.tools import CallArguments, Content, Reasoning


@dataclass
class ChatShape(Shape):
    """One chat completion; all chunks share their id and time.

    ``top_logprobs`` None is without log-probabilities. Without ``thoughts``, what the model thinks is not told.
    """

    model: str
    names: TokenNames
    extras: Extras
    top_logprobs: int | None = None
    service_tier: str | None = None
    thoughts: bool = True
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    ending = b"data: [DONE]\n\n"
    _opened: set[int] = field(default_factory=set)

    def events(self, index: int, sample: Sample, piece: Piece, parts: Sequence[Part]) -> Sequence[Event]:
        """Return the chunks with what is new, before the first one with the role."""
        scored, ids = piece.scored, piece.ids
        deltas = [_delta(part) for part in parts if self.thoughts or not isinstance(part, Reasoning)]
        if not deltas and (scored or (ids and self.extras.token_ids and sample.reason is None)):
            deltas = [{}]
        events = []
        if index not in self._opened:
            self._opened.add(index)
            opening = self.extras.prompt_ids(sample)
            events.append(self._chunk(index, sample, {"role": "assistant", "content": ""}, prompt=opening))
        for delta in deltas:
            events.append(self._chunk(index, sample, delta, scored, ids))
            scored, ids = (), []
        if sample.reason is not None:
            events.append(self._chunk(index, sample, {}, ids=ids, reason=sample.reason))
        return events

    def end(self, samples: Sequence[Sample], usage: Usage) -> Sequence[Event]:  # noqa: ARG002
        """Return the chunk with the usage, where it was asked for."""
        return [Event(self._object("chat.completion.chunk", [], usage_of(usage)))] if self.extras.usage else []

    def whole(self, samples: Sequence[Sample], usage: Usage) -> Json:
        """Return the chat completion."""
        choices = [self._choice(*each) for each in enumerate(samples)]
        prompt = {**self.extras.prompt_ids(samples[0]), **self.extras.scores(self.names, samples[0])}
        return self._object("chat.completion", choices, usage_of(usage), prompt)

    def _choice(self, index: int, sample: Sample) -> Json:
        message: Json = {"role": "assistant", "content": sample.text, "refusal": None}
        if sample.reasoning and self.thoughts:
            message["reasoning_content"] = sample.reasoning
        if sample.calls:
            message["content"] = sample.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in sample.calls
            ]
        logprobs = self._logprobs(sample.scored)
        ids = self.extras.ids(sample.ids)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": sample.reason, **ids}

    def _chunk(
        self,
        index: int,
        sample: Sample,
        delta: Json,
        scored: Sequence[ScoredToken] = (),
        ids: Sequence[int] = (),
        *,
        reason: str | None = None,
        prompt: Json | None = None,
    ) -> Event:
        logprobs, told = self._logprobs(scored) if scored else None, self.extras.ids(ids)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason, **told}
        return Event(self._object("chat.completion.chunk", [choice], self.extras.usage_so_far(sample), prompt))

    def _logprobs(self, scored: Sequence[ScoredToken]) -> Json | None:
        return None if self.top_logprobs is None else chat_logprobs(self.names, scored, self.top_logprobs)

    def _object(self, kind: str, choices: list[Json], usage: Json | None, prompt: Json | None = None) -> Json:
        tier = {} if self.service_tier is None else {"service_tier": self.service_tier}
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **tier,
            "usage": usage,
            **(prompt or {}),
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
