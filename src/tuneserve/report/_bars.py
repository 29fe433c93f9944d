"""Bars of what fills something, beside how large it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuneserve.report._html import Html, element
from tuneserve.report._page import figure, legend

_WIDTH, _ROW, _BAR = 760, 54, 20
_PART_COLOURS = 4


@dataclass(frozen=True)
class Part:
    """A part of a bar: what it is, how large, and how that is said."""

    name: str
    value: float
    said: str


@dataclass(frozen=True)
class Bar:
    """One bar: its parts from left to right, and how it ended, in a word."""

    name: str
    parts: Sequence[Part]
    verdict: str = ""


def bars(caption: str, found: Sequence[Bar], *, limit: float, limit_name: str, whole: float, note: str = "") -> Html:
    """Return a figure of bars on one scale, where ``whole`` is all there is and ``limit`` what may be filled of it.

    Equal names have equal colours.
    """
    most = max([whole, *(sum(part.value for part in bar.parts) for bar in found)])
    scale = _WIDTH / most if most > 0 else 0.0
    names = list(dict.fromkeys(part.name for bar in found for part in bar.parts))
    colours = {name: f"s{index % _PART_COLOURS}" for index, name in enumerate(names)}
    rows = [piece for index, bar in enumerate(found) for piece in _bar(bar, index * _ROW, scale, whole, limit, colours)]
    drawing = element(
        "svg", *rows, viewBox=f"-2 0 {_WIDTH + 4} {max(1, len(found)) * _ROW}", role="img", aria_label=caption
    )
    shown = [*((colours[name], name) for name in names), ("free", "free"), ("rule", limit_name)]
    notes = [element("p", note, class_="note")] if note else []
    return figure(caption, drawing, legend(shown), *notes)


def _bar(bar: Bar, top: float, scale: float, whole: float, limit: float, colours: dict[str, str]) -> Iterable[Html]:
    said = ", ".join(f"{part.name} {part.said}" for part in bar.parts)
    yield element("text", bar.name, x=0, y=top + 14)
    yield element("text", bar.verdict, x=_WIDTH, y=top + 14, text_anchor="end")
    yield element("rect", x=0, y=top + 20, width=whole * scale, height=_BAR, class_="part free")
    start = 0.0
    for part in bar.parts:
        title = element("title", f"{bar.name}: {said}")
        width = part.value * scale
        yield element("rect", title, x=start, y=top + 20, width=width, height=_BAR, class_=f"part {colours[part.name]}")
        start += width
    yield element("line", x1=limit * scale, x2=limit * scale, y1=top + 17, y2=top + 23 + _BAR, class_="rule")
