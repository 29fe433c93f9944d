"""From the text of an output to what the model says with it."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from tuneserve.text.tools._calls import CallScanner
from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import CallArguments, CallStarted, Content, Event, Reasoning
from tuneserve.text.tools._format import ReasoningFormat, ToolFormat
from tuneserve.text.tools._harmony import HarmonyScanner
from tuneserve.text.tools._thoughts import ThoughtScanner


class Parser:
    """Splits one output into content, reasoning and calls, as its text comes.

    The text is a ``Detokenizer``'s that keeps :func:`visible_ids`. Whatever is no call is content. Blanks beside
    markers are in no event. Time is linear in the text.

    Args:
        tool_format: None finds no calls, for ``tool_choice`` none too.
        reasoning: None finds no thoughts.
        tools: what the request offers.
        prompt: the rendered prompt, which may have begun the thoughts.
    """

    def __init__(
        self,
        tool_format: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        tools: Sequence[ToolDefinition] = (),
        prompt: str = "",
    ) -> None:
        named = {tool.name: tool for tool in tools}
        channels = "harmony" in (tool_format and tool_format.name, reasoning and reasoning.name)
        self._harmony = HarmonyScanner(named, tool_format is not None, prompt) if channels else None
        self._thoughts = None if channels or not reasoning else ThoughtScanner(reasoning, reasoning.opened_by(prompt))
        self._calls = None if channels or not tool_format else CallScanner(tool_format, named)

    def push(self, text: str) -> list[Event]:
        """Take more text and return what is final with it."""
        if self._harmony is not None:
            return _joined(self._harmony.push(text))
        said: Sequence[Event] = [Content(text)] if self._thoughts is None else self._thoughts.push(text)
        return _joined(event for part in said for event in self._scanned(part))

    def finish(self) -> list[Event]:
        """Return what was held back."""
        if self._harmony is not None:
            return _joined(self._harmony.finish())
        said: Sequence[Event] = [] if self._thoughts is None else self._thoughts.finish()
        events = [event for part in said for event in self._scanned(part)]
        return _joined([*events, *(self._calls.finish() if self._calls is not None else [])])

    def _scanned(self, part: Event) -> list[Event]:
        return self._calls.push(part.text) if self._calls is not None and isinstance(part, Content) else [part]


def _joined(events: Iterable[Event]) -> list[Event]:
    """Join neighbours that are text of one kind, or of the arguments of one call."""
    some = [event for event in events if _text(event)]
    if len(some) < 2:
        return some
    joined: list[Event] = []
    for _, group in groupby(some, _kind):
        first, *others = group
        text = "".join(map(_text, (first, *others)))
        match first:
            case CallStarted():
                joined.append(first)
            case CallArguments(index):
                joined.append(CallArguments(index, text))
            case Content() | Reasoning():
                joined.append(type(first)(text))
    return joined


def _text(event: Event) -> str:
    match event:
        case CallStarted(_, name):
            return name
        case CallArguments(_, text) | Content(text) | Reasoning(text):
            return text


def _kind(event: Event) -> tuple[object, ...]:
    return (type(event), event.index) if isinstance(event, CallStarted | CallArguments) else (type(event),)
