"""A Jinja environment in which a hostile template can neither reach Python nor run away.

The sandbox keeps templates from Python's internals. Time is bounded by counting loop iterations and calls against a
budget per rendering, memory by checking the size of whatever an operation would make before it is made.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

_MAX_LENGTH = 4_000_000
_MAX_STEPS = 1_000_000
_MAX_BITS = 4096
_budget: ContextVar[list[int]] = ContextVar("budget")


class TemplateRefusalError(TemplateError):
    """The template itself refuses the conversation, with ``raise_exception``."""


class Environment(ImmutableSandboxedEnvironment):
    """The dialect of chat templates (Transformers' settings and functions), bounded."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        for name in ("center", "indent", "wordwrap", "format", "urlize", "random"):
            del self.filters[name]
        self.filters["indent"] = _indent
        self.filters["tojson"] = _tojson
        self.filters["replace"] = _replace
        self.filters[_LOOP] = _counted
        self.filters[_CONCAT] = _concatenated
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Bounded().visit(super()._parse(source, name, filename))
        assert isinstance(tree, nodes.Template)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute a binary operation whose result has a bounded size."""
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function of the template's, counting it, with bounded arguments where it makes text."""
        _spend()
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str | bytes):
            _check_method(__obj, args)
        return super().call(__context, __obj, *args, **kwargs)

    def bounded(self, make: Callable[[], Iterable[str]]) -> str:
        """Join the pieces that ``make`` yields, within one budget of steps and of length."""
        token = _budget.set([_MAX_STEPS])
        try:
            pieces, length = [], 0
            for piece in make():
                length = _fits(length + len(piece))
                pieces.append(piece)
            return "".join(pieces)
        finally:
            _budget.reset(token)


class _Generation(Extension):
    """``{% generation %}``, which marks the answer for training and means nothing here."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_LOOP, _CONCAT = "_counted", "_concatenated"


class _Bounded(NodeTransformer):
    """Counts every loop and measures every ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _LOOP, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), _CONCAT, [], [], None, None, lineno=node.lineno)


def _spend() -> None:
    budget = _budget.get()
    budget[0] -= 1
    if budget[0] < 0:
        raise SecurityError("it takes too many steps")


def _fits(length: int) -> int:
    if length > _MAX_LENGTH:
        raise SecurityError("it makes too long a text")
    return length


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend()
        yield item


def _concatenated(items: list[Any]) -> str:
    texts = [str(item) for item in items]
    _fits(sum(map(len, texts)))
    return "".join(texts)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    sized = [value for value in (left, right) if hasattr(value, "__len__")]
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if operator == "+" and len(sized) == 2:
        _fits(len(left) + len(right))
    elif operator == "*" and sized and numbers:
        _fits(len(sized[0]) * max(0, numbers[0]))
    elif operator == "*" and len(numbers) == 2:
        _fits_number(left.bit_length() + right.bit_length())
    elif operator == "**" and len(numbers) == 2:
        _fits_number(left.bit_length() * max(0, right))
    elif operator == "%" and isinstance(left, str):
        raise SecurityError("it formats text with %")


def _fits_number(bits: int) -> None:
    if bits > _MAX_BITS:
        raise SecurityError("it makes too large a number")


def _check_method(method: BuiltinMethodType, args: tuple[Any, ...]) -> None:
    text, name = method.__self__, method.__name__
    assert isinstance(text, str | bytes)
    if name in ("format", "format_map", "translate", "expandtabs"):
        raise SecurityError(f"it calls {name} of a text")
    if name in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int):
        _fits(args[0])
    elif name == "replace" and len(args) > 1:
        _fits_replacement(text, args[0], args[1])
    elif name == "join" and args and hasattr(args[0], "__len__"):
        _fits(len(text) * len(args[0]))


def _fits_replacement(text: Any, old: Any, new: Any) -> None:
    if len(new) > len(old):
        _fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    _fits_replacement(str(text), str(old), str(new))
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, _MAX_LENGTH)
    lines = str(text).splitlines() or [""]
    _fits(len(str(text)) + len(lines) * len(margin))
    if str(text).endswith("\n"):
        lines.append("")
    rest = [margin + line if line or blank else line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *rest])


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    if isinstance(indent, int):
        indent = min(indent, 64)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateRefusalError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(str(form)[:200])
