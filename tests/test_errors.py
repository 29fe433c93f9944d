"""Protects: every error is one sentence that says what is wrong and what to do about it."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuneserve import errors
from tuneserve.client import ProtocolError, TransportError

PACKAGE = Path(__file__).parents[1] / "src" / "tuneserve"
KINDS = {name for name, value in vars(errors).items() if inspect.isclass(value)}
KINDS |= {ProtocolError.__name__, TransportError.__name__}
# Said of an engine by one that names it: "vllm died with code 1 while it started; its last lines: ...".
PARTS = {"{} while it started", "was not ready after {} seconds"}
# What is filled in at the end is a reason with a remedy of its own, or what another program said.
PASSED_ON = re.compile(r"\{\}\.?$")


def messages() -> Iterator[tuple[str, str]]:
    """Yield where an error is raised, and its message with {} for what is filled in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and _name(node.func) in KINDS:
                text = _text(node.args[0])
                if text is not None and text not in PARTS:
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def _text(value: ast.expr) -> str | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    if isinstance(value, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in value.values)
    return None


MESSAGES = list(messages())


def test_they_are_found() -> None:
    assert len(MESSAGES) > 500


def test_each_is_one_sentence() -> None:
    assert not [
        found for found in MESSAGES if not found[1].endswith((".", "{}")) or re.search(r"[a-z]\. [A-Z]", found[1])
    ]


def test_each_says_what_to_do() -> None:
    assert not [found for found in MESSAGES if ";" not in found[1] and not PASSED_ON.search(found[1])]


def test_none_begins_as_a_line_of_its_own() -> None:
    """They follow "error: ", so a word that no name begins with is small."""
    assert not [found for found in MESSAGES if re.match(r"(The|A|An|This|It|There|Cannot|Could|No|Invalid) ", found[1])]


@pytest.mark.parametrize("text", ["something is wrong.", "one; two. Three."])
def test_others_would_be_noticed(text: str) -> None:
    assert (";" not in text and not PASSED_ON.search(text)) or re.search(r"[a-z]\. [A-Z]", text)
