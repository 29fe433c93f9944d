"""Calls written as JSON, whatever is around it."""

import json
import re
from collections.abc import Container, Generator
from typing import Any

from tuneserve.text.tools._events import Call, Said
from tuneserve.text.tools._format import Reader

_MAX_DEPTH = 100
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[\w.:/-]{1,256}")
_ARGUMENTS = ("arguments", "parameters")
_BEFORE_ARGUMENTS = [(f'"{key}"', ":") for key in _ARGUMENTS]
# What an object that is a call begins with, blanks before it.
_FIRST = ("", *(f'"{key}"' for key in ("name", "type", "function", *_ARGUMENTS)))
_CLOSED_BY = {"{": "}", "[": "]"}


def read_space() -> Generator[None, str, str]:
    """Read blanks and return the character after them."""
    while (char := (yield)).isspace():
        pass
    return char


def read_calls(said: list[Said], char: str = "") -> Reader:
    """Read a call, or an array of calls, whose first character is ``char`` where that has been read."""
    char = char or (yield from read_space())
    if char == "{":
        return (yield from read_call(said))
    between = "["
    while char == between:
        if (yield from read_space()) != "{" or not (yield from read_call(said)):
            return False
        char, between = (yield from read_space()), ","
    # An array that ends as it should belongs to its calls.
    return between == "," and char == "]"


def read_call(said: list[Said], offered: Container[str] | None = None) -> Reader:
    """Read the rest of an object that is a call.

    Its arguments are said as they come where its name is before them, and else once it is whole. Only ``offered``
    functions count, where given, and only objects that begin like a call.
    """
    pieces, before = ["{"], ("", "{")
    may_stream = True
    while True:
        char = yield
        piece: str | None = char
        if char == '"':
            piece = yield from _read_string()
        elif char == "{" and may_stream and before in _BEFORE_ARGUMENTS:
            # Once only, or reading what has many of them would take more than linear time.
            may_stream = False
            call = _call("".join(pieces) + "{}}")
            if call is not None and (offered is None or call.name in offered):
                return (yield from read_arguments(said, call.name)) and (yield from _read_rest(said))
            piece = yield from _read_value(char)
        elif char in "{[":
            piece = yield from _read_value(char)
        if piece is None or (offered is not None and before[1] == "{" and piece.strip() not in _FIRST):
            return False
        pieces.append(piece)
        if char == "}":
            break
        before = before if char.isspace() else (before[1], piece)
    call = _call("".join(pieces))
    if call is None or (offered is not None and call.name not in offered):
        return False
    said.append(call)
    return True


def read_arguments(said: list[Said], name: str) -> Reader:
    """Read the rest of an object, of which each character is said as it comes, in a call of ``name``.

    Control characters in strings are escaped. It is read until its brackets are closed, JSON or not; but a bracket
    that closes another one, nesting that is too deep, and ``<``, which begins a closing tag, end it early.
    """
    said.append(Call(name, "{"))
    open_brackets, quoted, escaped = ["}"], False, False
    while open_brackets:
        char = yield
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
            said.append(json.dumps(char)[1:-1] if char < " " else char)
            continue
        if char in _CLOSED_BY:
            open_brackets.append(_CLOSED_BY[char])
        elif char in "}]" and char == open_brackets[-1]:
            open_brackets.pop()
        elif char in "}]<":
            return False
        if len(open_brackets) > _MAX_DEPTH:
            return False
        quoted = char == '"'
        said.append(char)
    return True


def _read_rest(said: list[Said]) -> Reader:
    """Read the end of a call whose arguments have been read: what else is in it has no effect."""
    char = yield from read_space()
    if char == ",":
        rest = yield from _read_value("{")
        if rest is None or members(rest) is None:
            return False
    elif char != "}":
        return False
    said.append("")
    return True


def _read_string() -> Generator[None, str, str]:
    taken, escaped = ['"'], False
    while True:
        char = yield
        taken.append(char)
        if char == '"' and not escaped:
            return "".join(taken)
        escaped = char == "\\" and not escaped


def _read_value(text: str) -> Generator[None, str, str | None]:
    """Read up to the end of the JSON object or array that ``text`` begins; None where it is nested too deeply."""
    taken, depth = [text], 1
    while 0 < depth <= _MAX_DEPTH:
        char = yield
        taken.append((yield from _read_string()) if char == '"' else char)
        depth += (char in "{[") - (char in "}]")
    return None if depth else "".join(taken)


def value_text(text: str) -> str | None:
    """Return ``text`` where it is JSON, repaired where only its control characters are not escaped; else None."""
    value = loads(text)
    if value is None:
        return text if text == "null" else None
    try:
        json.loads(text)
        return text
    except ValueError:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            return None


def loads(text: str) -> Any:
    """Return the value that ``text`` is as JSON; None where it is none."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> None:
    raise ValueError(name)


_decoder = json.JSONDecoder(strict=False, parse_constant=_refuse)


def members(text: str) -> dict[str, str] | None:
    """Return the texts of the values of a JSON object; None where it is none."""
    if not isinstance(loads(text), dict):
        return None
    found, at = {}, _blank(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        at = _blank(text, _blank(text, at) + 1)
        _, end = _decoder.raw_decode(text, at)
        found[key] = text[at:end]
        at = _blank(text, end)
        at = _blank(text, at + 1) if text[at] == "," else at
    return found


def _blank(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _call(text: str) -> Call | None:
    given = members(text)
    if given and "function" in given and "name" not in given:
        nested = members(given["function"])
        given = {**given, "name": given["function"]} if nested is None else nested
    if not given or "name" not in given:
        return None
    name = loads(given["name"])
    arguments = next((given[key] for key in _ARGUMENTS if key in given), "{}")
    quoted = loads(arguments)
    arguments = quoted if isinstance(quoted, str) else "{}" if arguments == "null" else arguments
    checked = value_text(arguments) if isinstance(loads(arguments), dict) else None
    return Call(name, checked) if isinstance(name, str) and _NAME.fullmatch(name) and checked is not None else None
