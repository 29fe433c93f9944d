"""Go's text/template, as much of it as ``_write`` uses, to check what was written.

Semantics: https://pkg.go.dev/text/template.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[()]|:=|=|,|[$.\w]+)')


class GoTemplateError(Exception):
    """The template failed, as Go's would."""


def render_go(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Return what Ollama makes of ``messages`` with ``template``.

    Raises:
        GoTemplateError: rendering fails.
    """
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    root = {"Messages": joined, "System": system}
    tree = _Parser(_segments(template)).block()
    output: list[str] = []
    _Scope(root, root, {}, output).run(tree)
    return "".join(output)


@dataclass
class _Node:
    """A text or the tokens of an action, with the blocks of an ``if`` or ``range``."""

    text: str = ""
    action: list[str] = field(default_factory=list)
    branches: list[tuple[list[str], list["_Node"]]] = field(default_factory=list)


def _segments(template: str) -> list[str | list[str]]:
    """Divide a template into texts (trimmed as the markers beside them say) and the tokens of actions."""
    found: list[str | list[str]] = []
    position, trim_next = 0, False
    while (start := template.find("{{", position)) >= 0:
        text = template[position:start]
        text = text.lstrip() if trim_next else text
        position = start + 2
        if template.startswith("- ", position):
            text, position = text.rstrip(), position + 1
        tokens = []
        while (match := _TOKEN.match(template, position)) is not None:
            tokens.append(match[1])
            position = match.end()
        trim_next = template.startswith(" -}}", position)
        end = template.index("}}", position)
        assert not template[position:end].strip(" -"), f"unknown syntax at {template[position:end][:40]!r}"
        position = end + 2
        found += [text, tokens]
    found.append(template[position:].lstrip() if trim_next else template[position:])
    return found


class _Parser:
    def __init__(self, segments: list[str | list[str]]) -> None:
        self._segments = segments
        self._position = 0

    def block(self) -> list[_Node]:
        """Read up to ``else``, ``end`` or the end of all, which is left to be read."""
        nodes: list[_Node] = []
        while self._position < len(self._segments):
            segment = self._segments[self._position]
            if isinstance(segment, list) and segment[0] in ("else", "end"):
                return nodes
            self._position += 1
            if isinstance(segment, str):
                nodes.append(_Node(text=segment))
            elif segment[0] in ("if", "range"):
                nodes.append(_Node(action=segment[:1], branches=self._branches(segment[1:])))
            else:
                nodes.append(_Node(action=segment))
        return nodes

    def _branches(self, condition: list[str]) -> list[tuple[list[str], list[_Node]]]:
        branches = [(condition, self.block())]
        while (segment := self._segments[self._position])[0] == "else":
            assert isinstance(segment, list)
            self._position += 1
            branches.append((segment[2:] if len(segment) > 1 else ["true"], self.block()))
        self._position += 1
        return branches


@dataclass
class _Scope:
    root: Mapping[str, Any]
    dot: Any
    variables: dict[str, Any]
    output: list[str]

    def run(self, nodes: Sequence[_Node]) -> None:
        for node in nodes:
            if not node.action:
                self.output.append(node.text)
            elif node.action[0] == "if":
                body = next((body for condition, body in node.branches if self._value(condition)), [])
                self.run(body)
            elif node.action[0] == "range":
                self._range(*node.branches[0])
            elif node.action[1:2] in ([":="], ["="]):
                self.variables[node.action[0]] = self._value(node.action[2:])
            else:
                self.output.append(str(self._value(node.action)))

    def _range(self, header: list[str], body: Sequence[_Node]) -> None:
        index, _, element, _, *pipeline = header
        for number, item in enumerate(self._value(pipeline)):
            self.variables |= {index: number, element: item}
            _Scope(self.root, item, self.variables, self.output).run(body)

    def _value(self, tokens: Sequence[str]) -> Any:
        rest = list(tokens)
        value = self._call(rest)
        assert not rest, f"unknown syntax at {rest[0]!r}"
        return value

    def _call(self, rest: list[str]) -> Any:
        name = rest[0]
        if name not in _FUNCTIONS:
            return self._operand(rest)
        rest.pop(0)
        arguments = []
        while rest and rest[0] != ")":
            arguments.append(self._operand(rest))
        return _FUNCTIONS[name](*arguments)

    def _operand(self, rest: list[str]) -> Any:
        word = rest.pop(0)
        if word == "(":
            value = self._call(rest)
            assert rest.pop(0) == ")"
            return value
        if word.startswith('"'):
            return json.loads(word)
        if word in ("true", "false"):
            return word == "true"
        if word.isdecimal():
            return int(word)
        name, _, path = word.partition(".")
        value = self.dot if not name else self.root if name == "$" else self.variables[name]
        for key in filter(None, path.split(".")):
            value = value[key]
        return value


def _index(value: Sequence[Any], position: int) -> Any:
    if position >= len(value):
        raise GoTemplateError(f"error calling index on {str(value)[:200]!r}: index out of range: {position}")
    return value[position]


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": lambda first, second: first == second,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "len": len,
    "slice": lambda value, start: value[start:],
    "index": _index,
}
