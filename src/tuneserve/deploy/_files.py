"""The files of a deployment: how their text is made, and how they get to the disk."""

import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tuneserve.checkpoint import AtomicDirectory
from tuneserve.errors import OutputError


def to_yaml(value: Mapping[str, Any]) -> str:
    """Return ``value`` as YAML with its keys in their order, and no text cut into lines."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def from_template(template: str, /, **values: object) -> str:
    """Return ``template`` filled in; a value that it lacks is a mistake of ours."""
    return _environment().get_template(template).render(values)


def write(files: Mapping[str, str], out: Path) -> None:
    """Write all files or none; ``out`` must not exist or be empty.

    Raises:
        OutputError: ``out`` has something in it, or cannot be written.
    """
    try:
        if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
            out.rmdir()
    except OSError as error:
        raise OutputError(f"{out} cannot be used ({error.strerror}); choose another output directory.") from None
    with AtomicDirectory(out) as directory:
        for name, text in files.items():
            path = directory.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write everything out: anchors are for people who write YAML by hand."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Indent lists below their key."""
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("tuneserve.deploy"), undefined=StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, autoescape=False,  # noqa: S701 (no markup)
    )  # fmt: skip
    found.filters["shell"] = shlex.quote
    return found
