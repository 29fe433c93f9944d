"""Messages with calls in them, in the form that chat templates read."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tuneserve.errors import RequestError
from tuneserve.text.tools._json import loads

# Some templates put the arguments between other texts as they are, and so need a text; the others read an object.
_AS_OBJECT = re.compile(r"arguments[\"'\]]*\s*(\|\s*(tojson|items|dictsort)|\.items|is\s+(not\s+)?(string|mapping))")
_AS_TEXT = re.compile(r"[+~]\s*[\w.\[\"'\]]{0,100}arguments[\"'\]]*\s*([+~)]|-?\}\})")


def template_messages(messages: Sequence[Mapping[str, Any]], template_source: str) -> list[dict[str, Any]]:
    """Return ``messages`` with the arguments of their calls as an object, or as text where the template writes text.

    Raises:
        RequestError: the arguments of a call are not the text of a JSON object.
    """
    as_object = _AS_OBJECT.search(template_source) is not None or _AS_TEXT.search(template_source) is None
    return [_message(message, f"messages[{index}]", as_object) for index, message in enumerate(messages)]


def _message(message: Mapping[str, Any], param: str, as_object: bool) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    return {
        **message,
        "tool_calls": [_call(call, f"{param}.tool_calls[{i}]", as_object) for i, call in enumerate(calls)],
    }


def _call(call: object, param: str, as_object: bool) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    value = loads(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(value, dict):
        place = f"{param}.function.arguments"
        raise RequestError("the arguments of a call are the text of a JSON object; send such a text.", place)
    return {**call, "function": {**function, "arguments": value if as_object else arguments}}
