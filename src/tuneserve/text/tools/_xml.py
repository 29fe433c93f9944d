"""Calls as Qwen3-Coder and Qwen3.5 write them: ``<function=name><parameter=key>value</parameter></function>``."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve.text.tools._calls import held_back
from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import Call, Said
from tuneserve.text.tools._format import Reader
from tuneserve.text.tools._json import read_calls, read_space, value_text
from tuneserve.text.tools._rules import either, in_order, literal, marker, repeated, schema

_FUNCTION, _END = "<function=", "</function>"
_OPEN, _CLOSE = "<parameter=", "</parameter>"
_MAX_NAME = 256
_PYTHON = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class TaggedXml:
    """``<tool_call>`` with a function and its parameters in tags; a parameter is JSON unless it is a string."""

    tokens: Mapping[str, int]
    name: str = "qwen-xml"
    starts: tuple[str, ...] = ("<tool_call>", _FUNCTION)
    bare: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("</tool_call>",)

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:
        """Return a reader of a function in tags, or of JSON as earlier models write it."""
        if start != _FUNCTION:
            char = yield from read_space()
            if char in "{[":
                return (yield from read_calls(said, char))
            if (yield from _read_tag(char, (_FUNCTION,))) is None:
                return False
        name = yield from _read_name()
        if name is None:
            return False
        return (yield from _read_parameters(name, tools[name].properties if name in tools else {}, said))

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


def _read_tag(char: str, tags: Sequence[str]) -> Generator[None, str, str | None]:
    """Read the one of ``tags`` that ``char`` begins; None where it is none of them."""
    tag = char
    while tag not in tags:
        if not any(known.startswith(tag) for known in tags):
            return None
        tag += yield
    return tag


def _read_name() -> Generator[None, str, str | None]:
    """Read a name up to the end of its tag; None where it is none."""
    name = ""
    while (char := (yield)) != ">":
        name += char
        if len(name) > _MAX_NAME:
            return None
    name = name.strip().strip("\"'")
    return None if not name or any(char.isspace() or char in "<>" for char in name) else name


def _read_parameters(name: str, properties: Mapping[str, Any], said: list[Said]) -> Reader:
    """Read the parameters of a call of ``name``, each said as a member of its arguments."""
    begun = False
    while True:
        tag = yield from _read_tag((yield from read_space()), (_OPEN, _END))
        key = (yield from _read_name()) if tag == _OPEN else None
        if key is None:
            if begun:
                said.append("}")
            elif tag == _END:
                said.append(Call(name, "{}"))
            return tag == _END
        member = f"{json.dumps(key, ensure_ascii=False)}: "
        if not _is_text(properties.get(key)):
            member += _typed((yield from _read_value()))
        said.append(f", {member}" if begun else Call(name, f"{{{member}"))
        begun = True
        if _is_text(properties.get(key)):
            yield from _read_text(said)


def _read_value() -> Generator[None, str, str]:
    """Read the value of a parameter, without the line breaks at its ends."""
    taken: list[str] = []
    while "".join(taken[-len(_CLOSE) :]) != _CLOSE:
        taken.append((yield))
    return "".join(taken).removesuffix(_CLOSE).removeprefix("\n").removesuffix("\n")


def _read_text(said: list[Said]) -> Generator[None, str, None]:
    """Read the value of a parameter, as :func:`_read_value` does, and say it as a JSON string as it comes."""
    said.append('"')
    held = yield
    held = held.removeprefix("\n")
    while not held.endswith(_CLOSE):
        kept = held_back(held, (_CLOSE, f"\n{_CLOSE}"))
        if len(held) > kept:
            said.append(json.dumps(held[: len(held) - kept], ensure_ascii=False)[1:-1])
            held = held[len(held) - kept :]
        held += yield
    said.append('"')


def _is_text(given: object) -> bool:
    if not isinstance(given, dict):
        return True
    if "type" in given:
        return bool(given["type"] == "string")
    values = given.get("enum", [given["const"]] if "const" in given else None)
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _typed(text: str) -> str:
    """Return the JSON that a parameter which is no string has as its value; what is none becomes a string."""
    word = text.strip()
    value = json.dumps(_PYTHON[word]) if word in _PYTHON else value_text(word)
    return json.dumps(text, ensure_ascii=False) if value is None else value


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
