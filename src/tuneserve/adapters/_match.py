"""PEFT's rules for which module a pattern means. Patterns come from adapter files, so matching is bounded in time."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

import regex

from tuneserve.checkpoint import compile_pattern
from tuneserve.errors import AdapterError

_T = TypeVar("_T")
# Module paths are short: the patterns of an honest adapter match all modules of the largest models in far less.
_BUDGET_SECONDS = 20.0
_PLAIN = re.compile(r"[\w.-]*")
_MAX_PATTERNS = 256
_MAX_FORMS = 1024


class Matcher:
    """Matches regular expressions within one budget of time for all calls together."""

    def __init__(self) -> None:
        self._seconds = _BUDGET_SECONDS
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def full_match(self, pattern: str, text: str) -> "regex.Match[str] | None":
        """Match ``pattern`` against the whole of ``text``.

        Raises:
            AdapterError: the pattern is no regular expression, or the budget is spent.
        """
        started = time.monotonic()
        try:
            if pattern not in self._compiled:
                self._compiled[pattern] = compile_pattern(pattern)
            return self._compiled[pattern].fullmatch(text, timeout=max(self._seconds, 0.001))
        except TimeoutError:
            problem = "it takes too long to match"
        except ValueError as error:
            problem = str(error)
        finally:
            self._seconds -= time.monotonic() - started
        raise AdapterError(
            f"the adapter's pattern {pattern[:100]!r} cannot be used, because {problem}; write the module names out "
            "instead."
        )


class Modules:
    """What ``target_modules`` means: a regular expression (a string), or a list of names or endings of names."""

    def __init__(self, modules: str | tuple[str, ...], matcher: Matcher) -> None:
        self._pattern = modules if isinstance(modules, str) else None
        self._names = frozenset(() if isinstance(modules, str) else modules)
        self._matcher = matcher

    def __contains__(self, module: str) -> bool:
        if self._pattern is not None:
            return self._matcher.full_match(self._pattern, module) is not None
        return any(ending in self._names for ending in endings(module))

    def names_whole(self, module: str) -> bool:
        """Return whether a list names ``module`` with its whole path, or a regular expression decides."""
        return self._pattern is not None or module in self._names


class PatternValues(Generic[_T]):
    """``rank_pattern`` and ``alpha_pattern``: the first entry that matches the end of a module from a dot on decides.

    Entries of words and dots (adapters can have one for each module) are looked up, not matched. Their dots stand for
    any character, as in every expression: they are looked up under where these are, of which modules' names have few.

    Raises:
        AdapterError: there are too many regular expressions among them.
    """

    def __init__(self, patterns: Mapping[str, _T], matcher: Matcher) -> None:
        self._values = tuple(patterns.values())
        self._plain: dict[tuple[int, ...], dict[str, int]] = {}
        self._expressions: list[tuple[int, str]] = []
        self._matcher = matcher
        for index, pattern in enumerate(patterns):
            if _PLAIN.fullmatch(pattern):
                dots = (len(pattern), *(place for place, letter in enumerate(pattern) if letter == "."))
                self._plain.setdefault(dots, {}).setdefault(pattern, index)
            else:
                self._expressions.append((index, rf"(.*\.)?({pattern})"))
        if (count := len(self._expressions)) > _MAX_PATTERNS or (count := len(self._plain)) > _MAX_FORMS:
            raise AdapterError(
                f"the adapter has {count} kinds of patterns for ranks or alphas, which take too long to match; "
                "write the module names out instead."
            )

    def get(self, module: str, default: _T) -> _T:
        """Return the value for ``module``."""
        found = min(self._looked_up(module), default=None)
        for index, expression in self._expressions:
            if found is not None and index > found:
                break
            if self._matcher.full_match(expression, module):
                found = index
        return default if found is None else self._values[found]

    def _looked_up(self, module: str) -> Iterator[int]:
        ends = {len(end): end for end in endings(module)}
        for (length, *dots), patterns in self._plain.items():
            if (end := ends.get(length)) is not None:
                letters = list(end)
                for place in dots:
                    letters[place] = "."
                if (index := patterns.get("".join(letters))) is not None:
                    yield index


def endings(path: str) -> Iterator[str]:
    """Yield a dotted path and each of its endings from a dot on, the longest first."""
    yield path
    while "." in path:
        path = path.partition(".")[2]
        yield path


def layer_index(module: str, layer_patterns: tuple[str, ...], matcher: Matcher) -> int | None:
    """Return the number of the layer that ``module`` is in, None outside the layers."""
    patterns = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\..*" for pattern in layer_patterns] or [
        r".*?\.[^.]*\.(?P<idx>\d+)\..*"
    ]
    for pattern in patterns:
        if found := matcher.full_match(pattern, module):
            return int(found["idx"])
    return None
