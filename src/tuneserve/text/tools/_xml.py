"""Calls as Qwen3-Coder and Qwen3.5 write them: ``<function=name><parameter=key>value</parameter></function>``."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import Call
from tuneserve.text.tools._format import Reader
from tuneserve.text.tools._json import calls_in, loads, read_space, read_value
from tuneserve.text.tools._rules import either, in_order, literal, marker, repeated, schema

_FUNCTION, _END = "<function=", "</function>"
_OPEN, _CLOSE = "<parameter=", "</parameter>"
_PYTHON = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class TaggedXml:
    """``<tool_call>`` with a function and its parameters in tags; a parameter is JSON unless it is a string."""

    tokens: Mapping[str, int]
    name: str = "qwen-xml"
    starts: tuple[str, ...] = ("<tool_call>", _FUNCTION)
    bare: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("</tool_call>",)

    def read(self, start: str, tools: Mapping[str, ToolDefinition]) -> Reader:
        """Return a reader of a function in tags, or of JSON as earlier models write it."""
        if start != _FUNCTION:
            char = yield from read_space()
            if char in "{[":
                text = yield from read_value(char)
                return None if text is None else calls_in(text)
            for at, wanted in enumerate(_FUNCTION):
                if char != wanted:
                    return None
                if at < len(_FUNCTION) - 1:
                    char = yield
        call = _call((yield from _read_function()), tools)
        return [call] if call else None

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:
        """Return lark rules of ``calls``; of a string parameter, only an enumeration is enforced."""
        start, end = marker("<tool_call>", self.tokens), marker("</tool_call>", self.tokens)
        bodies = [
            f"{start} {literal(f'{chr(10)}<function={tool.name}>{chr(10)}')} args_{index} "
            f"{literal(_END + chr(10))} {end}"
            for index, tool in enumerate(tools)
        ]
        text = "text[lazy]: /(?s:.*)\\n<\\/parameter>\\n/\n"
        rules = [in_order(f"args_{index}", tool, _items(tool), "") for index, tool in enumerate(tools)]
        return repeated("calls", "call", '"\\n"', parallel) + either("call", bodies) + text + "".join(rules)


def _read_function() -> Generator[None, str, str]:
    taken: list[str] = []
    tail, inside = "", False
    while inside or not tail.endswith(_END):
        char = yield
        taken.append(char)
        tail = (tail + char)[-len(_CLOSE) :]
        inside = (inside or tail.endswith(_OPEN)) and not tail.endswith(_CLOSE)
    return "".join(taken)


def _call(text: str, tools: Mapping[str, ToolDefinition]) -> Call | None:
    name, found, body = text.removesuffix(_END).partition(">")
    name = name.strip().strip("\"'")
    if not found or not name or any(char.isspace() or char in "<>" for char in name):
        return None
    properties = tools[name].properties if name in tools else {}
    arguments: dict[str, Any] = {}
    at = 0
    while (begin := body.find(_OPEN, at)) >= 0:
        end = body.find(_CLOSE, begin)
        key, found, value = body[begin + len(_OPEN) : end].partition(">")
        if body[at:begin].strip() or end < 0 or not found:
            return None
        key = key.strip().strip("\"'")
        arguments[key] = _value(value.removeprefix("\n").removesuffix("\n"), properties.get(key))
        at = end + len(_CLOSE)
    return None if body[at:].strip() else Call(name, json.dumps(arguments, ensure_ascii=False))


def _is_text(given: object) -> bool:
    if not isinstance(given, dict):
        return True
    if "type" in given:
        return bool(given["type"] == "string")
    values = given.get("enum", [given["const"]] if "const" in given else None)
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _value(text: str, given: object) -> Any:
    if _is_text(given):
        return text
    word = text.strip()
    value = _PYTHON[word] if word in _PYTHON else loads(word)
    return text if value is None and word not in ("null", "None") else value


def _items(tool: ToolDefinition) -> dict[str, str]:
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    items = {}
    for name, given in tool.properties.items():
        head = literal(f"{_OPEN}{name}>\n")
        tail = literal(f"\n{_CLOSE}\n")
        values = given.get("enum", [given["const"]] if "const" in given else None) if isinstance(given, dict) else None
        if not _is_text(given):
            value = f"({schema({**given, **shared} if isinstance(given, dict) else given)}) {tail}"
        elif isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            value = "(" + " | ".join(map(literal, values)) + f") {tail}"
        else:
            value = "text"
        items[name] = f"{head} {value}"
    return items
