"""PEFT's rules for which module a pattern means. Patterns come from adapter files, so matching is bounded in time."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import regex

from tuneserve.errors import AdapterError

_T = TypeVar("_T")
# Module paths are short, so an honest pattern matches in microseconds.
_TIMEOUT_SECONDS = 1.0


def matches(modules: str | Iterable[str], module: str) -> bool:
    """Return whether ``module`` is meant by a regular expression (a string) or a list of names or name endings."""
    if isinstance(modules, str):
        return _full_match(modules, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in modules)


def pattern_value(patterns: Mapping[str, _T], module: str, default: _T) -> _T:
    """Return the value of the first pattern that matches the end of ``module`` from a dot on."""
    for pattern, value in patterns.items():
        if _full_match(rf"(.*\.)?({pattern})", module):
            return value
    return default


def layer_index(module: str, layer_patterns: tuple[str, ...]) -> int | None:
    """Return the number of the layer that ``module`` is in, None outside the layers."""
    patterns = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\..*" for pattern in layer_patterns] or [
        r".*?\.[^.]*\.(?P<idx>\d+)\..*"
    ]
    for pattern in patterns:
        if found := _full_match(pattern, module):
            return int(found["idx"])
    return None


def _full_match(pattern: str, text: str) -> "regex.Match[str] | None":
    try:
        return regex.fullmatch(pattern, text, timeout=_TIMEOUT_SECONDS)
    except TimeoutError:
        problem = "takes too long to match"
    except regex.error:
        problem = "is not a regular expression"
    raise AdapterError(f"the adapter's pattern {pattern[:100]!r} {problem}; write the module names out instead.")
