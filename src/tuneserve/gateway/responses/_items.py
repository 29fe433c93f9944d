"""The output of a response: items, and the events that build them up."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tuneserve.gateway._generate import ScoredToken
from tuneserve.gateway._parts import CallStart, Part, new_id
from tuneserve.gateway._shapes import Event, Json
from tuneserve.text.tools import CallArguments, Content, Reasoning

Logprobs = Callable[[Sequence[ScoredToken]], list[Json]]


class Items:
    """Builds items from parts in their order; each change is told as an event without sequence number."""

    def __init__(self, logprobs: Logprobs) -> None:
        self.output: list[Json] = []
        self._logprobs = logprobs
        self._open: Json | None = None

    def take(self, parts: Iterable[Part], scored: Sequence[ScoredToken] = ()) -> list[Event]:
        """Add parts; ``scored`` are the tokens that came with them."""
        events: list[Event] = []
        for part in parts:
            match part:
                case Content(text):
                    events += self._begin("message", {"id": new_id("msg"), "role": "assistant", "content": []})
                    logprobs = self._logprobs(scored)
                    scored = ()
                    content = self.output[-1]["content"][0]
                    content["text"] += text
                    content["logprobs"] += logprobs
                    events.append(self._at("output_text.delta", content_index=0, delta=text, logprobs=logprobs))
                case Reasoning(text):
                    events += self._begin("reasoning", {"id": new_id("rs"), "summary": [], "content": []})
                    self.output[-1]["content"][0]["text"] += text
                    events.append(self._at("reasoning_text.delta", content_index=0, delta=text))
                case CallStart(_, name, call_id):
                    item = {"id": new_id("fc"), "call_id": call_id, "name": name, "arguments": ""}
                    events += self._begin("function_call", item, always=True)
                case CallArguments(_, text):
                    self.output[-1]["arguments"] += text
                    events.append(self._at("function_call_arguments.delta", delta=text))
        return events

    def close(self, status: str) -> list[Event]:
        """End the item that is being built."""
        item = self._open
        if item is None:
            return []
        self._open = None
        events: list[Event] = []
        if item["type"] == "function_call":
            name, arguments = item["name"], item["arguments"]
            events.append(self._at("function_call_arguments.done", name=name, arguments=arguments))
        else:
            part = item["content"][0]
            done: Json = {"content_index": 0, "text": part["text"]}
            if item["type"] == "message":
                done["logprobs"] = part["logprobs"]
            events.append(self._at(f"{part['type']}.done", **done))
            events.append(self._at("content_part.done", content_index=0, part=_copy(part)))
        item["status"] = status
        events.append(self._whole("output_item.done", item))
        return events

    def _begin(self, kind: str, item: Json, *, always: bool = False) -> list[Event]:
        if self._open is not None and self._open["type"] == kind and not always:
            return []
        events = self.close("completed")
        self._open = {"type": kind, "status": "in_progress", **item}
        self.output.append(self._open)
        events.append(self._whole("output_item.added", self._open))
        if kind != "function_call":
            part: Json = (
                {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                if kind == "message"
                else {"type": "reasoning_text", "text": ""}
            )
            self._open["content"] = [part]
            events.append(self._at("content_part.added", content_index=0, part=_copy(part)))
        return events

    def _at(self, name: str, /, **data: Any) -> Event:
        return event(name, item_id=self.output[-1]["id"], output_index=len(self.output) - 1, **data)

    def _whole(self, name: str, item: Json) -> Event:
        shown = _copy(item)
        if "content" in shown:
            shown["content"] = [_copy(part) for part in shown["content"]]
        return event(name, output_index=len(self.output) - 1, item=shown)


def event(name: str, /, **data: Any) -> Event:
    """Return an event of a response."""
    return Event({"type": f"response.{name}", **data}, f"response.{name}")


def _copy(value: Json) -> Json:
    return dict(value)
