"""A Jinja environment in which a hostile template can neither reach Python nor run away.

Jinja's sandbox keeps templates from Python's internals. What is left is a finite set of operations, each of which is
named here and charged to the meter of the rendering; an operation that is not named is refused.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Undefined, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.nodes import Template
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace

from tuneserve.text import _operations as operations
from tuneserve.text._filters import filters, tests
from tuneserve.text._meter import counted, fits, made, measure, metered, text_of, work
from tuneserve.text._rewrite import BUILTINS, Generation, rewrite

_MAX_FORM = 200


class TemplateRefusalError(TemplateError):
    """The template itself refuses the conversation, with ``raise_exception``."""


class Environment(ImmutableSandboxedEnvironment):
    """The dialect of chat templates (Transformers' settings and functions), bounded."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        extensions = ["jinja2.ext.loopcontrols", Generation]
        # Without the optimizer, which would run operations while the template is compiled.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False, finalize=_finalize
        )
        self.filters = {**filters(), **BUILTINS}
        self.tests = tests()
        self._functions: dict[str, Callable[..., Any]] = {
            "cycler": Cycler,
            "dict": _dict,
            "joiner": Joiner,
            "namespace": _Namespace,
            "raise_exception": _refuse,
            "range": safe_range,
            "strftime_now": _strftime_now,
        }
        self.globals = dict(self._functions)

    def _parse(self, source: str, name: str | None, filename: str | None) -> Template:
        return rewrite(super()._parse(source, name, filename))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute or item, counting the access."""
        work()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item or attribute, counting the access and what it takes to hash its key."""
        if isinstance(argument, int):
            work()
        else:
            measure(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute a binary operation whose result has a bounded size."""
        operations.check_operation(operator, left, right)
        return made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template may call: macros, the functions above, methods of loops, texts and containers."""
        work()
        function = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(function, "__self__", None)

        def call(*args: Any, **kwargs: Any) -> Any:
            return super(Environment, __self).call(__context, __obj, *args, **kwargs)

        if isinstance(function, LoopContext) and args:
            return call(counted(args[0]), *args[1:], **kwargs)
        if isinstance(function, Macro | LoopContext | BlockReference | Undefined):
            return made(call(*args, **kwargs))
        if isinstance(owner, LoopContext | Cycler) or isinstance(function, Joiner):
            measure([args, kwargs])
            return call(*args, **kwargs)
        if any(function is known for known in __self._functions.values()):
            measure([args, kwargs])
            return made(call(*args, **kwargs))
        return operations.call_method(call, owner, getattr(function, "__name__", "something"), args, kwargs)

    def bounded(self, make: Callable[[], Iterable[str]], *, is_trial: bool = False) -> str:
        """Join the pieces that ``make`` yields, within what one rendering, or a trial of one, may cost."""
        with metered(is_trial):
            pieces, length = [], 0
            for piece in make():
                length = fits(length + len(piece))
                pieces.append(piece)
            return "".join(pieces)


@pass_context
def _finalize(_: Context, value: Any) -> str:
    return text_of(value)


class _Namespace(Namespace):
    """Jinja's namespace, which can neither stand in for Python's own attributes nor show all that is in it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        Namespace.__init__(self)
        for name, value in dict(*values, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"it names an attribute of a namespace {str(name)[:40]}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse(message: Any) -> NoReturn:
    raise TemplateRefusalError(text_of(message))


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_FORM:
        raise SecurityError(f"it formats the time with more than {_MAX_FORM} characters")
    return datetime.now().strftime(form)
