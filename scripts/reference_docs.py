"""Write docs/reference/cli.md and python.md from the code: ``python scripts/reference_docs.py``."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

import tuneserve
from tuneserve.cli import app

DIRECTORY = Path(__file__).parents[1] / "docs" / "reference"
_WRITTEN = "<!-- Written by scripts/reference_docs.py; change the code and run it again. -->"
_MODULE = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])")
_MARKUP = re.compile(r"\[/?[a-z ]+\]")
_CLI = f"""# Command line

{_WRITTEN}

Every verb prints its options with `--help`, progress and problems to standard error, and its result to standard
output, with `--json` for programs where it reports something. The exit code is 0 when the work is done, 1 when
something was checked and failed, 2 when the input cannot be used, with the remedy in one sentence.

`tuneserve --install-completion` completes verbs and options in bash, zsh, fish and PowerShell;
`tuneserve --show-completion` prints what it would install. `python -m tuneserve` is the same command.
"""
_PYTHON = f"""# Python

{_WRITTEN}

`import tuneserve` imports nothing heavy; PyTorch comes with the first name that needs it. Whatever is wrong with what
was given raises an exception of `tuneserve.errors`, all of which are `TuneserveError`s with one sentence of what to do.
"""


def cli_page() -> str:
    """Return the reference of every verb and option."""
    lines = [_CLI]
    for name, function in _commands(app, "tuneserve"):
        lines += _command(name, function)
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__.replace('_', '-')}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None and inner.name
        if inner.typer_instance.registered_callback is not None:
            assert inner.typer_instance.registered_callback.callback is not None
            yield f"{prefix} {inner.name}", inner.typer_instance.registered_callback.callback
        yield from _commands(inner.typer_instance, f"{prefix} {inner.name}")


def _command(name: str, function: Callable[..., Any]) -> Iterator[str]:
    given = [_Parameter.of(each) for each in inspect.signature(function, eval_str=True).parameters.values()]
    shown = [each for each in given if each is not None]
    arguments = " ".join(each.name if each.required else f"[{each.name}]" for each in shown if not each.is_option)
    yield f"## {name}\n"
    about, *examples = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    yield f"{_plain(about)}\n"
    yield "```\n" + "\n".join([f"{name} {arguments} [options]".replace("  ", " "), *_examples(examples)]) + "\n```\n"
    if shown:
        yield "| | | default |\n| --- | --- | --- |"
        yield from (f"| {each.shown} | {_cell(each.help)} | {each.default} |" for each in shown)
        yield ""


@dataclass(frozen=True)
class _Parameter:
    name: str
    is_option: bool
    required: bool
    shown: str
    help: str
    default: str

    @classmethod
    def of(cls, given: inspect.Parameter) -> "_Parameter | None":
        """Return what a parameter is on the command line, None for one that is not there."""
        annotation, *found = get_args(given.annotation) if get_origin(given.annotation) is Annotated else (None,)
        info = next((each for each in found if isinstance(each, (OptionInfo, ArgumentInfo))), None)
        if info is None:
            return None
        is_option, flag = isinstance(info, OptionInfo), annotation is bool
        named = [f"--{given.name.replace('_', '-')}"] + ([f"--no-{given.name.replace('_', '-')}"] if flag else [])
        # Within Annotated, Typer takes the first name for a default.
        first = [info.default] if isinstance(info.default, str) else []
        names = [name for each in [*first, *(info.param_decls or ())] or named for name in each.split("/")]
        code = ", ".join(f"`{name}`" for name in names) if is_option else f"`{given.name.upper()}`"
        required = given.default is given.empty
        value = "" if required or given.default in (None, False) else f"`{_said(given.default)}`"
        if info.envvar:
            value = f"`${info.envvar}`"
        kind = _kind(annotation) if is_option and not flag else ""
        return cls(given.name.upper(), is_option, required, f"{code} {kind}".strip(), info.help or "", value)


def _said(value: Any) -> str:
    return "yes" if value is True else str(value)


def _kind(annotation: Any) -> str:
    """Return what an option takes, as it is written beside it."""
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        annotation = next(each for each in get_args(annotation) if each is not NoneType)
    if get_origin(annotation) is list:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " ".join(str(each) for each in get_args(annotation))
    return {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}[annotation]


def _examples(parts: list[str]) -> Iterator[str]:
    for part in parts:
        command, _, said = part.partition("[/dim]")
        said = _plain(said).strip()
        yield _plain(command) + (f"  # {said}" if said else "")


def _cell(text: str | None) -> str:
    return _plain(text or "").replace("|", "\\|").replace("<", "&lt;")


def _plain(text: str) -> str:
    return _MARKUP.sub("", text).replace("\n", " ").strip()


def python_page() -> str:
    """Return the reference of the names that ``tuneserve`` has."""
    lines = [_PYTHON]
    for name in sorted(tuneserve.__all__, key=str.lower):
        value = getattr(tuneserve, name)
        if inspect.isclass(value):
            lines += [f"## {name}\n", _doc(value)]
            for method, function in inspect.getmembers(value, callable):
                if not method.startswith("_") and (function.__doc__ or "").strip():
                    lines += _function(f"{name}.{method}", function, "###")
        elif callable(value):
            lines += _function(name, value, "##")
    return "\n".join(lines).rstrip() + "\n"


def _function(name: str, function: Any, level: str) -> Iterator[str]:
    yield f"{level} {name}\n"
    yield f"```python\n{_signature(name, function)}\n```\n"
    yield _doc(function)


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    given = [each for each in signature.parameters.values() if each.name != "self"]
    flat = _short(f"{name}{signature.replace(parameters=given)}")
    if len(flat) <= 100:
        return flat
    shown, starred = [], False
    for each in given:
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        starred = starred or each.kind is each.VAR_POSITIONAL
        shown.append(str(each))
    returned = signature.return_annotation
    result = "" if returned is signature.empty else f" -> {inspect.formatannotation(returned)}"
    return _short(f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){result}")


def _short(signature: str) -> str:
    """Return a signature with classes by their own names, and quotes as in the code."""
    return _MODULE.sub("", signature).replace("'", '"')


def _doc(value: Any) -> str:
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", inspect.getdoc(value) or "").replace("``", "`")
    lines = []
    for line in text.splitlines():
        if line in ("Args:", "Raises:"):
            lines.append(f"**{line.rstrip(':')}**\n")
        elif found := re.match(r"    (\*{0,2}[\w, *]+): (.*)", line):
            lines.append(f"- `{found[1]}`: {found[2]}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write both."""
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / "cli.md").write_text(cli_page(), encoding="utf-8")
    (DIRECTORY / "python.md").write_text(python_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
