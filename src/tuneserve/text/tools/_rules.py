"""Pieces of llguidance's lark grammars."""

import json
import re
from collections.abc import Mapping, Sequence

from tuneserve.errors import RequestError
from tuneserve.text.tools._definitions import ToolDefinition

_PARAMETER = re.compile(r"[A-Za-z_][\w.-]*")
# As json.dumps and Jinja's tojson write, which is what models are trained on; free blanks could go on for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def literal(text: str) -> str:
    """Return ``text`` as a lark string."""
    return json.dumps(text)


def marker(text: str, tokens: Mapping[str, int]) -> str:
    """Return a marker as the special token that it is, else as a string."""
    return f"<[{tokens[text]}]>" if text in tokens else literal(text)


def schema(value: Mapping[str, object] | bool) -> str:
    """Return a rule body of the JSON values that keep to a schema."""
    given = {} if value is True else {"not": {}} if value is False else value
    return f"%json {json.dumps({**given, 'x-guidance': _LAYOUT})}"


def json_calls(tools: Sequence[ToolDefinition], arguments: str) -> str:
    """Return rules of which ``call`` is ``{"name": ..., arguments: ...}`` of one of ``tools``."""
    bodies = [f'"{{" {literal(_head(tool, arguments))} args_{index} "}}"' for index, tool in enumerate(tools)]
    return either("call", bodies) + schemas(tools)


def _head(tool: ToolDefinition, arguments: str) -> str:
    return f'"name": {json.dumps(tool.name)}, "{arguments}": '


def schemas(tools: Sequence[ToolDefinition]) -> str:
    """Return rules ``args_0``, ``args_1``, ... of the arguments of ``tools``."""
    return "".join(f"args_{index}: {schema(tool.parameters)}\n" for index, tool in enumerate(tools))


def either(name: str, bodies: Sequence[str]) -> str:
    """Return a rule that is one of ``bodies``."""
    return f"{name}: " + " | ".join(f"({body})" for body in bodies) + "\n"


def repeated(name: str, one: str, separator: str, parallel: bool) -> str:
    """Return a rule that is ``one``, or several of it where they may be ``parallel``."""
    return f"{name}: {one} ({separator} {one})*\n" if parallel else f"{name}: {one}\n"


def in_order(prefix: str, tool: ToolDefinition, items: Mapping[str, str], separator: str) -> str:
    """Return rules, the first named ``prefix``, of a tool's parameters in order, of which only some are required.

    ``items`` are rule bodies by parameter. A rule is named by how many are behind it and whether any was written.

    Raises:
        RequestError: a parameter's name cannot be written in this way, or one is required that has no schema.
    """
    required = tool.parameters.get("required", [])
    unnamed = next((name for name in [*items, *required] if name not in items or not _PARAMETER.fullmatch(name)), None)
    if unnamed is not None:
        message = (
            f"the parameter {unnamed[:64]!r} of {tool.name} has no schema among the properties, or a name that this "
            "model's form of calls cannot hold; give it one, or send tool_choice auto."
        )
        raise RequestError(message, "tools")
    rules = [f"{prefix}: {prefix}_0_none\n"]
    for index, (name, body) in enumerate(items.items()):
        rules.append(f"{prefix}_{index}_item: {body}\n")
        for state, before in (("none", ""), ("some", f"{separator} " if separator else "")):
            bodies = [f"{before}{prefix}_{index}_item {prefix}_{index + 1}_some"]
            bodies += [] if name in required else [f"{prefix}_{index + 1}_{state}"]
            rules.append(either(f"{prefix}_{index}_{state}", bodies))
    rules += [f'{prefix}_{len(items)}_{state}: ""\n' for state in ("none", "some")]
    return "".join(rules)
