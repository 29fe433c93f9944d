"""``/v1/responses``: a response of items, whole or as events."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._generate import Piece, ScoredToken
from tuneserve.gateway._logprobs import TokenNames, chat_logprobs
from tuneserve.gateway._parts import CallStart, Part, Sample, new_id
from tuneserve.gateway._sampling import tier
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._shapes import Event, Json, Shape, Usage
from tuneserve.gateway.responses._items import Items, event
from tuneserve.gateway.responses._schema import ResponsesRequest
from tuneserve.text.tools import CallArguments, Content, Reasoning

Keep = Callable[[Json, Sample], None]


@dataclass
class ResponseShape(Shape):
    """One response; ``keep`` is called with it once it is whole."""

    served: ServedModel
    body: ResponsesRequest
    keep: Keep
    id: str = field(default_factory=lambda: new_id("resp"))
    created_at: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """Begin with no items."""
        self._names = TokenNames(self.served.tokenizer, as_ids=False)
        self._items = Items(self._logprobs)
        self._number = 0

    def start(self, usage: Usage) -> Sequence[Event]:  # noqa: ARG002
        """Return the response without output, twice, as OpenAI does."""
        response = self._response("in_progress", None)
        return self._numbered([event("created", response=response), event("in_progress", response=response)])

    def events(self, index: int, sample: Sample, piece: Piece, parts: Sequence[Part]) -> Sequence[Event]:  # noqa: ARG002
        """Return what the parts add to items."""
        return self._numbered(self._items.take(parts, piece.scored))

    def end(self, samples: Sequence[Sample], usage: Usage) -> Sequence[Event]:
        """Return the end of the last item, and the whole response."""
        (sample,) = samples
        status = _status(sample)
        events = self._items.close(status)
        response = self._finished(sample, usage)
        return self._numbered([*events, event(status, response=response)])

    def whole(self, samples: Sequence[Sample], usage: Usage) -> Json:
        """Return the response."""
        (sample,) = samples
        parts: list[Part] = [Reasoning(sample.reasoning)] if sample.reasoning else []
        parts += [Content(sample.text)] if sample.text else []
        for index, call in enumerate(sample.calls):
            parts += [CallStart(index, call.name, call.id), CallArguments(index, call.arguments)]
        self._items.take(parts, sample.scored)
        self._items.close(_status(sample))
        return self._finished(sample, usage)

    def failure(self, error: ApiError) -> Event:
        """Return the response as failed."""
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        failed = {**self._response("failed", None), "error": {"code": code, "message": str(error)}}
        return self._numbered([event("failed", response=failed)])[0]

    def _finished(self, sample: Sample, usage: Usage) -> Json:
        response = self._response(_status(sample), usage)
        self.keep(response, sample)
        return response

    def _numbered(self, events: Sequence[Event]) -> list[Event]:
        numbered = []
        for each in events:
            numbered.append(replace(each, data={**each.data, "sequence_number": self._number}))
            self._number += 1
        return numbered

    def _logprobs(self, scored: Sequence[ScoredToken]) -> list[Json]:
        if not self.body.include:
            return []
        content: list[Json] = chat_logprobs(self._names, scored, self.body.top_logprobs or 0)["content"]
        return content

    def _response(self, status: str, usage: Usage | None) -> Json:
        body, defaults = self.body, self.served.defaults
        optional = {
            "prompt_cache_key": body.prompt_cache_key,
            "safety_identifier": body.safety_identifier,
            "usage": None if usage is None else _usage(usage),
            "user": body.user,
        }
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self.served.name,
            "output": list(self._items.output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "service_tier": tier(body.service_tier),
            "store": body.store is not False,
            "temperature": defaults.temperature if body.temperature is None else body.temperature,
            "text": {"format": _format(body), "verbosity": "medium"},
            "tool_choice": _plain(body.tool_choice) or "auto",
            "tools": [_tool(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": defaults.top_p if body.top_p is None else body.top_p,
            "truncation": "disabled",
            **{name: value for name, value in optional.items() if value is not None},
        }


def _status(sample: Sample) -> str:
    return "incomplete" if sample.reason == "length" else "completed"


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached or 0, "cache_write_tokens": 0},
        "output_tokens": usage.generated,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.generated,
    }


def _format(body: ResponsesRequest) -> Json:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    form: Json = body.text.format.model_dump(by_alias=True)
    return form


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def _tool(tool: Any) -> Json:
    return {
        **tool.model_dump(exclude_none=True, by_alias=True),
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }
