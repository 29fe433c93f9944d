"""Calls written as JSON, whatever is around it."""

import json
import re
from collections.abc import Generator
from typing import Any

from tuneserve.text.tools._events import Call

_MAX_DEPTH = 100
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[\w.:/-]{1,256}")
_ARGUMENTS = ("arguments", "parameters")
_BARE_KEYS = ("name", "type", "function", *_ARGUMENTS)


def read_space() -> Generator[None, str, str]:
    """Read blanks and return the character after them."""
    while (char := (yield)).isspace():
        pass
    return char


def read_value(text: str) -> Generator[None, str, str | None]:
    """Read up to the end of the JSON object or array that ``text`` begins; None where it is nested too deeply."""
    if text not in ("{", "["):
        return None
    taken, depth, quoted, escaped = [text], 1, False, False
    while depth:
        char = yield
        taken.append(char)
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in "{[":
            depth += 1
            if depth > _MAX_DEPTH:
                return None
        elif char in "}]":
            depth -= 1
    return "".join(taken)


def read_bare_object() -> Generator[None, str, str | None]:
    """Read the rest of an object; None as soon as its first key is none that a call has."""
    before = ["{"]
    while (char := (yield)).isspace():
        before.append(char)
    if char != '"':
        return None
    key = ""
    while (char := (yield)) != '"':
        key += char
        if not any(known.startswith(key) for known in _BARE_KEYS):
            return None
    if key not in _BARE_KEYS:
        return None
    rest = yield from read_value("{")
    return None if rest is None else "".join(before) + f'"{key}"' + rest[1:]


def calls_in(text: str) -> list[Call] | None:
    """Return the call, or the array of calls, that the JSON ``text`` is; None where it is none."""
    parts = [text] if text.startswith("{") else elements(text)
    calls = [_call(part) for part in parts or []]
    return [call for call in calls if call] if calls and all(calls) else None


def object_text(text: str) -> str | None:
    """Return ``text`` where it is a JSON object, repaired where only its control characters are not escaped."""
    value = loads(text)
    if not isinstance(value, dict):
        return None
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


def elements(text: str) -> list[str] | None:
    """Return the texts of the elements of a JSON array; None where it is none."""
    if not isinstance(loads(text), list):
        return None
    found, at = [], _blank(text, text.index("[") + 1)
    while text[at] != "]":
        _, end = _decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = _blank(text, end)
        at = _blank(text, at + 1) if text[at] == "," else at
    return found


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
    checked = object_text(arguments)
    return Call(name, checked) if isinstance(name, str) and _NAME.fullmatch(name) and checked is not None else None
