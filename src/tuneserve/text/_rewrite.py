"""Rewrites a parsed template so that what Jinja compiles straight to Python goes through the meter.

These are loops, ``~``, comparisons, slices, literals of containers, constant text and macros.
"""

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from tuneserve.text import _operations as operations
from tuneserve.text._meter import counted, fits, made, measure, occupy, text_of

_MACRO_BYTES = 1024
_PIECE_BYTES = 64
_REFUSED = (nodes.EvalContextModifier, nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)


class Generation(Extension):
    """``{% generation %}``, which marks the answer for training and means nothing here."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body, whose variables are its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def rewrite(tree: nodes.Template) -> nodes.Template:
    """Return ``tree`` with calls of :data:`BUILTINS` in it.

    Raises:
        TemplateSyntaxError: it uses a tag that chat templates cannot have.
    """
    for node in tree.find_all(_REFUSED):
        raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not for chat templates", node.lineno)
    rewritten = _Rewriter().visit(tree)
    assert isinstance(rewritten, nodes.Template)
    return rewritten


class _Rewriter(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _call("_counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("_concatenated", _list(node.nodes, node))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        names: list[nodes.Expr] = [nodes.Const(operand.op, lineno=node.lineno) for operand in node.ops]
        return _call("_compared", node.expr, _list(names, node), _list([part.expr for part in node.ops], node))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("_sliced", node.node, *(bound or nodes.Const(None, lineno=node.lineno) for bound in bounds))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("_made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("_made", node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        keys, values = [pair.key for pair in node.items], [pair.value for pair in node.items]
        return _call("_dict", _list(keys, node), _list(values, node))

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        constant = [part.data for part in node.nodes if isinstance(part, nodes.TemplateData)]
        if constant:
            node.nodes = [_charge(4 * sum(map(len, constant)) + _PIECE_BYTES, node.lineno), *node.nodes]
        return node

    def visit_Macro(self, node: nodes.Macro) -> Any:  # noqa: N802
        self.generic_visit(node)
        return [nodes.Output([_charge(_MACRO_BYTES, node.lineno)], lineno=node.lineno), node]

    def visit_CallBlock(self, node: nodes.CallBlock) -> Any:  # noqa: N802
        self.generic_visit(node)
        return [nodes.Output([_charge(_MACRO_BYTES, node.lineno)], lineno=node.lineno), node]


def _call(name: str, value: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    assert isinstance(value, nodes.Expr)
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _list(items: list[nodes.Expr], node: nodes.Node) -> nodes.List:
    return nodes.List(items, lineno=node.lineno)


def _charge(size: int, line: int) -> nodes.Filter:
    return _call("_occupied", nodes.Const(size, lineno=line))


def _occupied(size: int) -> str:
    occupy(size)
    return ""


def _concatenated(items: list[Any]) -> str:
    texts = [text_of(item) for item in items]
    fits(sum(map(len, texts)))
    return made("".join(texts))


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return made(value[start:stop:step])


def _dictionary(keys: list[Any], values: list[Any]) -> dict[Any, Any]:
    measure(keys)
    return made(dict(zip(keys, values, strict=True)))


# The leading underscore keeps these from meeting the name of a filter that a template means.
BUILTINS: dict[str, Any] = {
    "_compared": operations.compare,
    "_concatenated": _concatenated,
    "_counted": counted,
    "_dict": _dictionary,
    "_made": made,
    "_occupied": _occupied,
    "_sliced": _sliced,
}
