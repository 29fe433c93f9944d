"""Protects: pages and pictures that scripts write say what the code says now."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import tuneserve  # noqa: E402
from scripts.pictures import architecture, deciding  # noqa: E402
from scripts.reference_docs import cli_page, python_page  # noqa: E402
from tuneserve.cli import app  # noqa: E402


@pytest.mark.parametrize(
    ("name", "write", "script"),
    [
        ("reference/cli.md", cli_page, "reference_docs"),
        ("reference/python.md", python_page, "reference_docs"),
        ("pictures/deciding.svg", deciding, "pictures"),
        ("pictures/architecture.svg", architecture, "pictures"),
    ],
)
def test_what_is_written_is_what_the_script_writes(name: str, write: Callable[[], str], script: str) -> None:
    assert (ROOT / "docs" / name).read_text("utf-8") == write(), f"run python scripts/{script}.py"


def test_every_option_of_every_verb_is_in_the_reference() -> None:
    """By Typer's own tree of commands, which the script does not use."""
    page = cli_page()

    def walk(command: Any, name: str) -> None:
        for inner, each in getattr(command, "commands", {}).items():
            walk(each, f"{name} {inner}")
        if name == "tuneserve" or (hasattr(command, "commands") and command.callback is None):
            return
        section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, name
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                shown = option if option.startswith("-") else option.upper()
                assert option in ("--help", "-h") or f"`{shown}`" in section[1], f"{name} {option}"

    walk(typer.main.get_command(app), "tuneserve")


def test_every_argument_of_every_public_name_is_in_the_reference() -> None:
    page = python_page()
    for name in tuneserve.__all__:
        value = getattr(tuneserve, name)
        if callable(value):
            assert f"## {name}" in page
        if inspect.isfunction(value):
            for parameter in inspect.signature(value).parameters:
                assert re.search(rf"`\*{{0,2}}{parameter}`|\b{parameter}:", page), f"{name}({parameter})"
