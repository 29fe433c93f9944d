"""Calls written as a list of Python calls: ``[f(a=1), g()]``."""

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import Call, Said
from tuneserve.text.tools._format import Reader
from tuneserve.text.tools._json import read_space
from tuneserve.text.tools._rules import either, in_order, literal, marker, repeated, schema

_MAX_DEPTH = 100
_MAX_NAME = 150
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"""
    r"""|(?P<word>[A-Za-z_][\w.-]*)|(?P<sign>[\[\](){},:=]))""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": ""}
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Pythonic:
    """``[f(a=1)]`` as the whole answer or between markers, as Llama 4 and others write it.

    Only offered functions count, since nothing else tells a call from an answer in brackets.
    """

    tokens: Mapping[str, int]
    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    name: str = "pythonic"
    bare: tuple[str, ...] = ("[",)

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:
        """Return a reader of a list of calls, each of which is said once it is whole."""
        if start != "[" and (yield from read_space()) != "[":
            return False
        said_any = False
        char = yield from read_space()
        while not (said_any and char == "]"):
            head = char
            while char != "(":
                if len(head) > _MAX_NAME or not any(name.startswith(head.rstrip()) for name in tools):
                    return False
                char = yield
                head += char
            text = yield from _read_call(head)
            call = None if text is None else _parsed(text)
            if call is None or call.name not in tools:
                return False
            said.append(call)
            said_any = True
            char = yield from read_space()
            if char == ",":
                char = yield from read_space()
            elif char != "]":
                return False
        return True

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:
        """Return lark rules of ``calls``; values are written as in JSON."""
        start = f"{marker(self.starts[0], self.tokens)} " if self.starts else ""
        end = f" {marker(self.ends[0], self.tokens)}" if self.ends else ""
        bodies = [f'{literal(tool.name + "(")} args_{index} ")"' for index, tool in enumerate(tools)]
        rules = [in_order(f"args_{index}", tool, _items(tool), '", "') for index, tool in enumerate(tools)]
        listed = f'calls: {start}"[" listed "]"{end}\n' + repeated("listed", "call", '", "', parallel)
        return listed + either("call", bodies) + "".join(rules)


def _items(tool: ToolDefinition) -> dict[str, str]:
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    given = {k: {**v, **shared} if isinstance(v, dict) else v for k, v in tool.properties.items()}
    return {name: f"{literal(name + '=')} ({schema(value)})" for name, value in given.items()}


def _read_call(head: str) -> Generator[None, str, str | None]:
    """Read the rest of what begins with ``head`` and its parenthesis; None where it is nested too deeply."""
    taken, depth, quote, escaped = [head], 1, "", False
    while 0 < depth <= _MAX_DEPTH:
        char = yield
        taken.append(char)
        if quote:
            quote = quote if escaped or char != quote else ""
            escaped = char == "\\" and not escaped
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
    return None if depth else "".join(taken)


def _parsed(text: str) -> Call | None:
    try:
        tokens = _Tokens(_tokens(text))
        call = tokens.call()
        return call if tokens.peek() == ("end", "") else None
    except ValueError:
        return None


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(at)
        yield match.lastgroup, match.group(match.lastgroup)
        at = match.end()


class _Tokens:
    """A list of calls being read; ValueError where it is none."""

    def __init__(self, tokens: Iterator[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._next = next(tokens, ("end", ""))

    def peek(self) -> tuple[str, str]:
        return self._next

    def take(self, kind: str, text: str | None = None) -> str:
        found, value = self._next
        if found != kind or text not in (None, value):
            raise ValueError(value)
        self._next = next(self._tokens, ("end", ""))
        return value

    def listed(self, begin: str, end: str, item: Any) -> list[Any]:
        """Read items with commas between, and maybe one behind the last."""
        self.take("sign", begin)
        items = []
        while self._next != ("sign", end):
            items.append(item())
            if self._next != ("sign", end):
                self.take("sign", ",")
        self.take("sign", end)
        return items

    def call(self) -> Call:
        """Read ``name(key=value, ...)``."""
        name = self.take("word")
        pairs = self.listed("(", ")", lambda: self.pair("word", "="))
        return Call(name, json.dumps(dict(pairs), ensure_ascii=False, allow_nan=False))

    def pair(self, kind: str, between: str) -> tuple[str, Any]:
        """Read a key and a value."""
        key = self.take(kind)
        self.take("sign", between)
        return _unquoted(key) if kind == "text" else key, self.value()

    def value(self) -> Any:
        """Read a literal."""
        kind, text = self._next
        if kind == "sign" and text in "[(":
            return self.listed(text, "]" if text == "[" else ")", self.value)
        if kind == "sign":
            return dict(self.listed("{", "}", lambda: self.pair("text", ":")))
        self.take(kind)
        if kind == "text":
            return _unquoted(text)
        if kind == "number":
            return float(text) if set(text) & set(".eE") else int(text)
        if text not in _WORDS:
            raise ValueError(text)
        return _WORDS[text]


def _unquoted(text: str) -> str:
    return _ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    code = match.group(1)
    if code[0] in "xuU" and len(code) > 1:
        return chr(int(code[1:], 16))
    if code[0] in "01234567":
        return chr(int(code, 8))
    return _ESCAPES.get(code, code if code in "\\'\"" else "\\" + code)
