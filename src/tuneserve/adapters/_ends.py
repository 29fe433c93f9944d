"""Whether PEFT is done with an adapter's patterns in bounded time: it matches them with ``re``, which has no limit."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneserve.adapters._fields import read_adapter_config
from tuneserve.errors import AdapterError

_SECONDS = 20.0
_LITERAL = re.compile(r"[\w.-]*")
_PROGRAM = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in map(re.compile, patterns):
    for name in names:
        pattern.match(name)
"""


def check_patterns_end(directory: Path, modules: Iterable[str]) -> None:
    """Match the patterns of the adapter in ``directory`` with all ``modules`` of a model, in a process of its own.

    Raises:
        AdapterError: that takes too long, or they are no regular expressions.
    """
    patterns = list(_patterns(read_adapter_config(directory)))
    if not patterns:
        return
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    asked = json.dumps([patterns, list(modules)])
    problem = "are no regular expressions"
    try:
        result = subprocess.run(command, input=asked, text=True, capture_output=True, timeout=_SECONDS, check=False)  # noqa: S603
        if result.returncode == 0:
            return
    except subprocess.TimeoutExpired:
        problem = "take too long to match"
    raise AdapterError(
        f"the patterns of {directory}, such as {patterns[0][:100]!r}, {problem}; write the module names out instead."
    )


def _patterns(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what PEFT makes of the fields in which there can be regular expressions, where there are any."""
    for field, form in (
        ("target_modules", "{}$"), ("exclude_modules", "{}$"), ("layers_pattern", r".*\.{}\.(\d+)\."),
        ("modules_to_save", r"(^|.*\.){}($|\..*)"), ("rank_pattern", r"(.*\.)?({})$"),
        ("alpha_pattern", r"(.*\.)?({})$"),
    ):  # fmt: skip
        value = config.get(field)
        # The items of these two are names.
        names_only = field in ("target_modules", "exclude_modules") and not isinstance(value, str)
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, list | dict) else ():
            if isinstance(pattern, str) and not names_only and not _LITERAL.fullmatch(pattern):
                yield form.format(pattern)
