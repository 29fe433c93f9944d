"""The functions that a request offers to the model, checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneserve.errors import RequestError

# What OpenAI and Anthropic allow between them, and dots, which some clients have in names.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_MAX_TOOLS = 128
_MAX_DEPTH = 32
_MAX_CHARACTERS = 100_000
_MAX_DESCRIPTION = 20_000
_TOOL_FIELDS = {"type", "function"}
_FUNCTION_FIELDS = {"name", "description", "parameters", "strict"}


@dataclass(frozen=True)
class ToolDefinition:
    """A function that the model may call; ``parameters`` is a JSON schema of an object."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False

    @property
    def properties(self) -> dict[str, Any]:
        """The schemas of the parameters by name."""
        found = self.parameters.get("properties")
        return found if isinstance(found, dict) else {}

    def for_template(self) -> dict[str, Any]:
        """Return the definition in the form that chat templates read, which is OpenAI's."""
        described = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": dict(self.parameters)}}


def check_tools(tools: object, param: str = "tools") -> list[ToolDefinition]:
    """Check ``tools`` as a request gives them: a list of ``{"type": "function", "function": {...}}``.

    Raises:
        RequestError: they are malformed, too many or too large; ``param`` names the place, as
            ``tools[0].function.name``.
    """
    if not isinstance(tools, list) or len(tools) > _MAX_TOOLS:
        raise RequestError(f"{param} is not a list of at most {_MAX_TOOLS} tools; send one.", param)
    checked = [_tool(tool, f"{param}[{index}]") for index, tool in enumerate(tools)]
    seen: set[str] = set()
    for index, tool in enumerate(checked):
        if tool.name in seen:
            raise RequestError(
                f"there are two functions named {tool.name!r}; name each its own.", f"{param}[{index}].function.name"
            )
        seen.add(tool.name)
    return checked


def _tool(tool: object, param: str) -> ToolDefinition:
    given = _object(tool, _TOOL_FIELDS, param)
    if given.get("type") != "function":
        raise RequestError('the type of a tool can only be "function"; send that.', f"{param}.type")
    place = f"{param}.function"
    function = _object(given.get("function"), _FUNCTION_FIELDS, place)
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = "the name of a function is 1 to 128 letters, digits, dots, dashes and underscores; send such a name."
        raise RequestError(message, f"{place}.name")
    if description is not None and (not isinstance(description, str) or len(description) > _MAX_DESCRIPTION):
        raise RequestError(
            f"a description is a text of at most {_MAX_DESCRIPTION:,} characters; send such a text.",
            f"{place}.description",
        )
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise RequestError("strict is neither true nor false; send one of them.", f"{place}.strict")
    parameters = function.get("parameters")
    if parameters is None:
        return ToolDefinition(name, description, strict=bool(strict))
    return ToolDefinition(name, description, _schema(parameters, f"{place}.parameters"), bool(strict))


def _object(value: object, allowed: set[str], param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{param} is not an object; send one.", param)
    for key in value:
        if key not in allowed:
            known = ", ".join(sorted(allowed))
            raise RequestError(f"{str(key)[:64]!r} is not a field of {param}; it has {known}.", param)
    return value


def _schema(value: object, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError("the parameters of a function are a JSON schema; send an object.", param)
    if value.get("type", "object") != "object":
        raise RequestError('the parameters of a function are of the type "object"; say so in the schema.', param)
    if not _shallow(value):
        raise RequestError(f"the schema is nested more than {_MAX_DEPTH} deep; make it flatter.", param)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        size = len(json.dumps(value))
    except (TypeError, ValueError):
        raise RequestError("the schema is not JSON; send JSON values only.", param) from None
    if size > _MAX_CHARACTERS:
        raise RequestError(f"the schema is {size:,} characters, more than {_MAX_CHARACTERS:,}; shorten it.", param)
    properties, required = value.get("properties", {}), value.get("required", [])
    if not isinstance(properties, dict) or not all(isinstance(item, dict | bool) for item in properties.values()):
        raise RequestError("the schema's properties are not an object of schemas; send one.", f"{param}.properties")
    if not isinstance(required, list) or not all(isinstance(item, str) for item in required):
        raise RequestError("what the schema requires is not a list of names; send one.", f"{param}.required")
    return {"type": "object", "properties": {}, **value}


def _shallow(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return True
        level = below
    return False
