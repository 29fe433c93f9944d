"""What a model's way of calling tools and of thinking means for a request."""

import secrets
import string
from collections.abc import Callable, Sequence
from functools import partial

from tuneserve.engines.contract import Grammar
from tuneserve.gateway._constraint import Constraint
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._parts import CallStart, Part, PlainReader, Reader, new_id
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway.schemas import AllowedToolsChoice, ChatRequest, NamedTool, Tool
from tuneserve.text.tools import (
    CallArguments,
    CallStarted,
    Content,
    Event,
    Parser,
    Reasoning,
    ToolDefinition,
    check_tools,
    grammar,
    visible_ids,
)

_ALPHABET = string.ascii_letters + string.digits
_MISTRAL_LENGTH = 9


def offered(served: ServedModel, tools: Sequence[Tool] | None) -> list[ToolDefinition]:
    """Return the tools of a request, checked.

    Raises:
        ApiError: the model cannot call any.
        RequestError: one of them is malformed.
    """
    if not tools:
        return []
    if served.tool_format is None:
        message = f"The chat template of {served.name!r} shows no way of calling 'tools' that is known; leave them out."
        raise ApiError(400, message, param="tools", code="unsupported_parameter")
    return check_tools([tool.model_dump(exclude_none=True) for tool in tools])


def call_constraint(
    served: ServedModel, body: ChatRequest, tools: Sequence[ToolDefinition], prompt: str
) -> Constraint | None:
    """Return the grammar that makes the model call what ``tool_choice`` asks for; None where it need not.

    Raises:
        RequestError: there is none for these tools.
    """
    choice = body.tool_choice
    choice = choice.allowed_tools.mode if isinstance(choice, AllowedToolsChoice) else choice
    if not tools or not (isinstance(choice, NamedTool) or choice == "required"):
        return None
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        tools, parallel = [tool for tool in tools if tool.name == choice.function.name], False
    text = grammar(served.tool_format, tools, "required", parallel, served.reasoning_format, prompt)
    assert text is not None, "a call is required"
    return Constraint("tool_choice", Grammar(kind="lark", text=text))


def reading(
    served: ServedModel, tools: Sequence[ToolDefinition], prompt: str, *, thinks: bool
) -> tuple[Callable[[], Reader], frozenset[int]]:
    """Return what makes the reader of one sample, and the special tokens that it must see."""
    calls = served.tool_format if tools else None
    thoughts = served.reasoning_format if thinks else None
    if calls is None and thoughts is None:
        return PlainReader, frozenset()
    is_mistral = calls is not None and calls.name.startswith("mistral")
    make = partial(_CallReader, lambda: Parser(calls, thoughts, tools, prompt), _mistral_id if is_mistral else _id)
    return make, visible_ids(calls, thoughts)


class _CallReader:
    """A parser whose calls have ids."""

    def __init__(self, make_parser: Callable[[], Parser], make_id: Callable[[], str]) -> None:
        self._parser = make_parser()
        self._make_id = make_id

    def push(self, text: str) -> list[Part]:
        """Take more text and return what is certain with it."""
        return self._parts(self._parser.push(text))

    def finish(self) -> list[Part]:
        """Return what was held back."""
        return self._parts(self._parser.finish())

    def _parts(self, events: Sequence[Event]) -> list[Part]:
        parts: list[Part] = []
        for event in events:
            match event:
                case CallStarted(index, name):
                    parts.append(CallStart(index, name, self._make_id()))
                case Content() | Reasoning() | CallArguments():
                    parts.append(event)
        return parts


def _id() -> str:
    return new_id("call")


def _mistral_id() -> str:
    """Return an id as Mistral's templates demand them: nine letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_MISTRAL_LENGTH))
