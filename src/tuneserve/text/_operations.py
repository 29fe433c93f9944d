"""Jinja's operators, tests and the methods of texts and containers, charged for before they run."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

from tuneserve.text._meter import fits, fits_number, made, measure, work

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda item, container: item in container,
    "notin": lambda item, container: item not in container,
}
TESTS = {
    **dict.fromkeys(("eq", "==", "equalto"), "eq"),
    **dict.fromkeys(("ne", "!="), "ne"),
    **dict.fromkeys(("gt", ">", "greaterthan"), "gt"),
    **dict.fromkeys(("ge", ">="), "gteq"),
    **dict.fromkeys(("lt", "<", "lessthan"), "lt"),
    **dict.fromkeys(("le", "<="), "lteq"),
    "in": "in",
}
# In both ways of formatting, a width that comes from an argument, which cannot be told beforehand.
PERCENT = re.compile(r"%[-+ #0-9.]*\*")
BRACES = re.compile(r"\{[^{}]*\{")
_NUMBER = re.compile(r"\d{4,}", re.ASCII)
_SCANS = ("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition")
_WIDE = 10**8
_PADS = ("center", "ljust", "rjust", "zfill")
_TEXT_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
    "join", "lower", "partition", "removeprefix", "removesuffix", "replace", "split", "splitlines", "startswith",
    "swapcase", "title", "upper", *_SCANS, *_PADS,
)  # fmt: skip
_METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, frozenset(_TEXT_METHODS)),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    ((list, tuple, range), frozenset(("copy", "count", "index"))),
    ((int, float), frozenset(("bit_length", "is_integer"))),
)


def compare(left: Any, names: list[str], others: list[Any]) -> Any:
    """Return the value of ``left < other <= ...`` with the comparisons in ``names``."""
    result: Any = True
    for name, right in zip(names, others, strict=True):
        _charge_comparison(name, left, right)
        result = _COMPARISONS[name](left, right)
        if not result:
            break
        left = right
    return result


def _charge_comparison(name: str, left: Any, right: Any) -> None:
    if name in ("in", "notin"):
        work(1 + (len(right) >> 8) if isinstance(right, str) else 1)
        if isinstance(right, list | tuple | range):
            work(len(right) * (1 + (len(left) >> 8 if isinstance(left, str) else 0)))
        if not isinstance(left, str | int | float):
            measure(left)
            measure(right)
    elif isinstance(left, str) or isinstance(right, str):
        work(1 + (len(left) >> 8 if isinstance(left, str) else 0))
    else:
        measure(left)
        measure(right)


def check_operation(name: str, left: Any, right: Any) -> None:
    """Charge for a binary operation, refused where its result would be huge."""
    work()
    sized = [value for value in (left, right) if isinstance(value, str | list | tuple)]
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if name == "+" and len(sized) == 2:
        fits(len(left) + len(right))
    elif name == "*" and sized and numbers:
        fits(len(sized[0]) * max(0, numbers[0]))
    elif name == "*" and len(numbers) == 2:
        fits_number(left.bit_length() + right.bit_length())
    elif name == "**" and len(numbers) == 2:
        fits_number(left.bit_length() * max(0, right))
    elif name == "%" and isinstance(left, str):
        check_format(PERCENT, left, right)


def check_format(way: re.Pattern[str], form: Any, *values: Any) -> None:
    """Charge for formatting ``values`` by ``form``, which has fields of :data:`PERCENT` or :data:`BRACES`."""
    if not isinstance(form, str) or way.search(form.replace("{{", "")):
        raise SecurityError("it formats with a width from an argument")
    fields = form.count("%") + form.count("{")
    widths = 1000 * fields + sum(int(number) if len(number) < 8 else _WIDE for number in _NUMBER.findall(form))
    longest = sum(measure(value)[1] for value in values)
    fits(len(form) + widths + fields * longest)


def check_replacement(text: str, old: str, new: str) -> None:
    """Refuse to replace where the result would be huge."""
    if len(new) > len(old):
        fits(len(text) + (text.count(old) if old else len(text) + 1) * (len(new) - len(old)))


def check_scan(text: str, pattern: Any) -> None:
    """Charge for an operation that may compare all of ``pattern`` at each character of ``text``."""
    work(len(text) * (len(pattern) if isinstance(pattern, str) else 1) >> 8)


def check_join(separator: str, items: Any) -> list[Any]:
    """Charge for joining texts and return them as a list; others than texts fail later."""
    texts = list(items)
    made(texts)
    fits(len(separator) * len(texts) + sum(len(text) for text in texts if isinstance(text, str)))
    return texts


def call_method(call: Callable[..., Any], owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method of a text, container or number, charging for it."""
    if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS):
        raise SecurityError(f"it calls {name} of a {type(owner).__name__}")
    args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
    measure([args, kwargs])
    if isinstance(owner, str):
        args = _check_text_method(owner, name, args, kwargs)
    elif not isinstance(owner, Mapping):
        measure(owner)
    result = made(call(*args, **kwargs))
    if isinstance(owner, str) and isinstance(result, list | tuple):
        made(owner)
    return result


def _check_text_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    work(len(text) >> 8)
    if name == "format":
        check_format(BRACES, text, *args, *kwargs.values())
    elif name in _PADS and args and isinstance(args[0], int):
        fits(args[0])
    elif name in _SCANS and args:
        check_scan(text, args[0])
    elif name == "replace" and len(args) > 1:
        check_replacement(text, args[0], args[1])
    elif name == "join" and args:
        return (check_join(text, args[0]), *args[1:])
    return args
