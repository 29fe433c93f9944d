"""The filters and tests of chat templates: Jinja's own, charged for before they run.

Left out are those that no chat template needs and that are costly to bound, like ``urlize`` and ``pprint``.
"""

import json
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from jinja2 import Environment, Undefined, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.tests import TESTS

from tuneserve.text import _operations as operations
from tuneserve.text._meter import counted, fits, made, measure, text_of, work

_MAX_INDENT = 64
_Function = Callable[..., Any]

_CONSTANT = ("abs", "attr", "count", "d", "default", "first", "float", "int", "last", "length")
_LAZY = ("batch", "items", "map", "reject", "rejectattr", "select", "selectattr", "slice")
_TEXTUAL = (
    "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace", "safe", "string",
    "title", "trim", "truncate", "upper", "urlencode",
)  # fmt: skip
_ORDERING = ("dictsort", "groupby", "max", "min", "sort", "unique")
_LINEAR = ("list", "reverse", "round", "sum")
_CONSTANT_TESTS = (
    "boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable", "mapping", "none",
    "number", "sameas", "sequence", "string", "test", "true", "undefined",
)  # fmt: skip


def filters() -> dict[str, Any]:
    """Return the filters of chat templates by name."""
    known: dict[str, Any] = {**FILTERS}
    return {
        **{name: known[name] for name in _CONSTANT},
        **{name: _charged(known[name], _CHECKS.get(name), _charge_nothing) for name in _LAZY},
        **{name: _charged(known[name], _CHECKS.get(name), _charge_text) for name in _TEXTUAL},
        **{name: _charged(known[name], _CHECKS.get(name), _charge_ordering) for name in _ORDERING},
        **{name: _charged(known[name], _CHECKS.get(name), _charge_length) for name in _LINEAR},
        "join": _join,
        "tojson": _tojson,
    }


def tests() -> dict[str, Any]:
    """Return the tests of chat templates by name."""
    known: dict[str, Any] = {**TESTS}
    return {
        **{name: known[name] for name in _CONSTANT_TESTS},
        **{name: _comparison(comparison) for name, comparison in operations.TESTS.items()},
        **{name: _charged(known[name], None, _charge_text) for name in ("lower", "upper")},
        **{name: _charged(known[name], _check_number, _charge_nothing) for name in ("divisibleby", "even", "odd")},
    }


def _charged(function: _Function, check: _Function | None, charge: Callable[[Any], None]) -> _Function:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        work()
        values = list(args)
        if charge is not _charge_nothing and len(values) > first and isinstance(values[first], Iterator):
            values[first] = made(list(values[first]))
        if len(values) > first:
            charge(values[first])
        measure([values[first + 1 :], kwargs])
        if check is not None:
            check(*values[first:], **kwargs)
        result = function(*values, **kwargs)
        return counted(result) if isinstance(result, Iterator) else made(result)

    return run


def _comparison(name: str) -> _Function:
    return lambda left, right: operations.compare(left, [name], [right])


def _charge_nothing(_: Any) -> None:
    """Charge nothing; what is yielded will be counted."""


def _charge_text(value: Any) -> None:
    if isinstance(value, str):
        work(len(value) >> 8)
    else:
        fits(measure(value)[1])


def _charge_ordering(value: Any) -> None:
    elements, characters = measure(value)
    work((elements + (characters >> 8)) * elements.bit_length())


def _charge_length(value: Any) -> None:
    if hasattr(value, "__len__") and not isinstance(value, Undefined):
        work(fits(len(value)) >> (8 if isinstance(value, str) else 0))


def _check_number(*values: Any) -> None:
    if any(isinstance(value, str) for value in values):
        raise SecurityError("it takes a text for a number")


def _check_round(value: Any, precision: int = 0, method: str = "common") -> None:
    _check_number(value, precision)
    if abs(precision) > 300:
        raise SecurityError(f"it rounds to {precision} digits by {method[:10]!r}")


def _check_sum(value: Any, attribute: Any = None, start: Any = 0) -> None:  # noqa: ARG001 - the filter's signature
    if not isinstance(start, int | float):
        raise SecurityError("it sums up what are no numbers")


def _check_replace(value: Any, old: Any, new: Any, count: Any = None) -> None:  # noqa: ARG001
    operations.check_replacement(text_of(value), text_of(old), text_of(new))


def _check_indent(value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:  # noqa: ARG001
    margin = len(width) if isinstance(width, str) else width
    fits(len(value) + (len(value.splitlines()) + 1) * margin)


def _check_center(value: Any, width: int = 80) -> None:  # noqa: ARG001
    fits(width)


def _check_trim(value: Any, chars: str | None = None) -> None:
    operations.check_scan(text_of(value), chars)


def _check_batch(value: Any, linecount: int, fill_with: Any = None) -> None:  # noqa: ARG001
    fits(linecount)


def _check_format(value: Any, *args: Any, **kwargs: Any) -> None:
    operations.check_format(operations.PERCENT, value, *args, *kwargs.values())


_CHECKS: dict[str, _Function] = {
    "batch": _check_batch,
    "center": _check_center,
    "format": _check_format,
    "indent": _check_indent,
    "replace": _check_replace,
    "round": _check_round,
    "sum": _check_sum,
    "trim": _check_trim,
}


@pass_environment
def _join(environment: Environment, value: Any, d: Any = "", attribute: Any = None) -> str:
    items = counted(value)
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    separator = text_of(d)
    return made(separator.join(operations.check_join(separator, (text_of(item) for item in items))))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    fits(measure(value)[1])
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > _MAX_INDENT:
        raise SecurityError(f"it indents JSON by more than {_MAX_INDENT}")
    if indent is None and separators is None:
        return made(json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces, length = [], 0
    for piece in counted(encoder.iterencode(value)):
        length = fits(length + len(piece))
        pieces.append(piece)
    return made("".join(pieces))
