"""``/v1/messages``: a message of content blocks, whole or as events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._generate import Piece
from tuneserve.gateway._parts import CallStart, Part, Sample, new_id
from tuneserve.gateway._shapes import Event, Json, Shape, Usage
from tuneserve.gateway.anthropic._errors import error_body
from tuneserve.text.tools import CallArguments, Content, Reasoning

# What Anthropic requires to be there.
_NO_MORE: Json = {"stop_details": None, "container": None}
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


@dataclass
class MessageShape(Shape):
    """One message."""

    model: str
    id: str = field(default_factory=lambda: new_id("msg"))
    _block: int = -1
    _kind: type[Part] | None = None

    def start(self, usage: Usage) -> Sequence[Event]:
        """Return the message without content."""
        return [_event("message_start", message=self._message([], None, None, usage))]

    def events(self, index: int, sample: Sample, piece: Piece, parts: Sequence[Part]) -> Sequence[Event]:  # noqa: ARG002
        """Return what the parts add to blocks, each kind of part and each call having one of its own."""
        return [event for part in parts for event in self._of(part)]

    def _of(self, part: Part) -> list[Event]:
        match part:
            case Content(text):
                start = self._switch(Content, {"type": "text", "text": "", "citations": None})
                return [*start, self._delta({"type": "text_delta", "text": text})]
            case Reasoning(text):
                start = self._switch(Reasoning, {"type": "thinking", "thinking": "", "signature": ""})
                return [*start, self._delta({"type": "thinking_delta", "thinking": text})]
            case CallStart(_, name, call_id):
                block = _call(name, call_id, {})
                return self._switch(CallStart, block, always=True)
            case CallArguments(_, text):
                return [self._delta({"type": "input_json_delta", "partial_json": text})]

    def end(self, samples: Sequence[Sample], usage: Usage) -> Sequence[Event]:
        """Return why it ended, and that it did."""
        (sample,) = samples
        delta = {**_NO_MORE, "stop_reason": _reason(sample), "stop_sequence": sample.stop}
        return [
            *self._close(),
            _event("message_delta", delta=delta, usage=_counts(usage)),
            _event("message_stop"),
        ]

    def whole(self, samples: Sequence[Sample], usage: Usage) -> Json:
        """Return the message."""
        (sample,) = samples
        content: list[Json] = []
        if sample.reasoning:
            content.append({"type": "thinking", "thinking": sample.reasoning, "signature": ""})
        if sample.text:
            content.append({"type": "text", "text": sample.text, "citations": None})
        # It must be an object, so wrong arguments are told as they are within one.
        given = [(call, call.decoded()) for call in sample.calls]
        content += [
            _call(call.name, call.id, {"invalid_json": call.arguments} if value is None else value)
            for call, value in given
        ]
        return self._message(content, _reason(sample), sample.stop, usage)

    def failure(self, error: ApiError) -> Event:
        """Return the event that ends a stream early."""
        return Event(error_body(error), "error")

    def _switch(self, kind: type[Part], block: Json, *, always: bool = False) -> list[Event]:
        if kind is self._kind and not always:
            return []
        closing = self._close()
        self._block, self._kind = self._block + 1, kind
        return [*closing, _event("content_block_start", index=self._block, content_block=block)]

    def _close(self) -> list[Event]:
        if self._kind is None:
            return []
        self._kind = None
        return [_event("content_block_stop", index=self._block)]

    def _delta(self, delta: Json) -> Event:
        return _event("content_block_delta", index=self._block, delta=delta)

    def _message(self, content: list[Json], reason: str | None, stop: str | None, usage: Usage) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            **_NO_MORE,
            "usage": {**_counts(usage), "cache_creation": None, "inference_geo": None, "service_tier": "standard"},
        }


def _call(name: str, call_id: str, arguments: Json) -> Json:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments, "caller": {"type": "direct"}}


def _counts(usage: Usage) -> Json:
    """Return the counts; Anthropic's ``input_tokens`` are those that were not found in the cache."""
    return {
        "input_tokens": usage.prompt - (usage.cached or 0),
        "output_tokens": usage.generated,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "cache_creation_input_tokens": None,
        "cache_read_input_tokens": usage.cached,
        "server_tool_use": None,
    }


def _event(name: str, **data: Any) -> Event:
    return Event({"type": name, **data}, name)


def _reason(sample: Sample) -> str:
    if sample.stop is not None and not sample.calls:
        return "stop_sequence"
    return _REASONS.get(sample.reason or "", "end_turn")
