"""Plots of numbers over numbers, as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuneserve.report._html import Html, element
from tuneserve.report._page import figure, legend

COLOURS = 6
_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 46
_MOST_TICKS = 9
# On a line of more points the dots would be the line.
_MOST_DOTS = 80
# Far within what a float holds, so that the room around the points is one too.
_LARGEST = 1e100


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one name, joined by a line in the order of x unless ``joined`` is false; it may be dashed.

    ``colour`` is a number from 0 to 5.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Line:
    """A horizontal line at ``value``: a limit or a target."""

    name: str
    value: float


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def plot(
    caption: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] | None = None,
    lines: Sequence[Line] = (),
    note: str | None = None,
) -> Html:
    """Return a figure. What is beyond 1e100, or not above 1e-100 on a logarithmic axis, has no place and is left out.

    Args:
        caption: what is shown.
        series: what is drawn.
        x: the name of the horizontal axis, with its unit.
        y: that of the vertical one.
        log_x: whether the horizontal axis is logarithmic.
        log_y: whether the vertical one is.
        x_ticks: where the horizontal axis has its numbers, if not at round ones.
        lines: limits, drawn over the whole width.
        note: what has to be known to read it.
    """
    kept = [(each, [point for point in each.points if _drawable(point, log_x, log_y)]) for each in series]
    kept = [(each, sorted(points)) for each, points in kept if points]
    notes = [element("p", note, class_="note")] if note else []
    if not kept:
        return figure(caption, element("p", "There is nothing to draw.", class_="note"), *notes)
    xs = [point[0] for _, points in kept for point in points]
    ys = [point[1] for _, points in kept for point in points]
    shown = [line for line in lines if _drawable((1.0, line.value), False, log_y)]
    across = _axis(xs, log_x, _LEFT, _WIDTH - _RIGHT, from_zero=False)
    up = _axis([*ys, *(line.value for line in shown)], log_y, _HEIGHT - _BOTTOM, _TOP, from_zero=True)
    ticks = [tick for tick in x_ticks or _ticks(across) if across.low <= tick <= across.high]
    parts = [*_grid(across, up, ticks), *_names(x, y), *(_rule(up.at(line.value)) for line in shown)]
    for each, points in kept:
        parts += _drawn(each, points, across, up)
    drawing = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"{caption}: {y} by {x}")
    names = [(f"s{each.colour}", each.name) for each, _ in kept] + [("rule", line.name) for line in shown]
    return figure(caption, drawing, legend(names), *notes)


def number(value: float) -> str:
    """Return a number for people, with three digits."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e7:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{float(f'{value:.3g}'):,.10g}"


def _drawable(point: tuple[float, float], log_x: bool, log_y: bool) -> bool:
    return all(
        abs(value) <= _LARGEST and (value >= 1 / _LARGEST or not log)
        for value, log in zip(point, (log_x, log_y), strict=True)
    )


def _axis(values: Sequence[float], log: bool, start: float, end: float, *, from_zero: bool) -> _Axis:
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.05 if high > low else 2.0
        return _Axis(low / room, high * room, log, start, end)
    room = 0.05 * (high - low) or abs(high) / 2 or 1.0
    return _Axis(0.0 if from_zero and low >= 0 else low - room, high + room, log, start, end)


def _ticks(axis: _Axis) -> list[float]:
    """Return round values within an axis, a few of them."""
    return (_log_ticks(axis) if axis.log else []) or _even_ticks(axis)


def _even_ticks(axis: _Axis) -> list[float]:
    step = 10.0 ** math.floor(math.log10((axis.high - axis.low) / 3))
    step *= next(times for times in (1, 2, 5, 10) if (axis.high - axis.low) / (step * times) <= _MOST_TICKS - 2)
    return [step * count for count in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)]


def _log_ticks(axis: _Axis) -> list[float]:
    """Return round values of an axis over several powers of ten; none over a short one."""
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    for digits, every in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 5), ((1,), 50)):
        found = [digit * 10.0**power for power in range(first, last + 1, every) for digit in digits]
        found = [tick for tick in found if axis.low <= tick <= axis.high]
        if len(found) <= _MOST_TICKS:
            return found if len(found) > 1 else []
    return []


def _grid(across: _Axis, up: _Axis, ticks: Iterable[float]) -> Iterable[Html]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in _ticks(up):
        place = up.at(tick)
        yield element("line", x1=_LEFT, x2=right, y1=place, y2=place, class_="grid")
        yield element("text", number(tick), x=_LEFT - 8, y=place + 4, text_anchor="end")
    for tick in ticks:
        place = across.at(tick)
        yield element("line", x1=place, x2=place, y1=bottom, y2=bottom + 5, class_="grid")
        yield element("text", number(tick), x=place, y=bottom + 19, text_anchor="middle")
    yield element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="grid")


def _names(x: str, y: str) -> Iterable[Html]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield element("text", x, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 8, text_anchor="middle")
    yield element("text", y, x=14, y=middle, text_anchor="middle", transform=f"rotate(-90 14 {middle:g})")


def _rule(place: float) -> Html:
    return element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place, class_="rule")


def _drawn(series: Series, points: Sequence[tuple[float, float]], across: _Axis, up: _Axis) -> Iterable[Html]:
    places = [(across.at(x), up.at(y)) for x, y in points]
    kind = f"s{series.colour % COLOURS}"
    if series.joined and len(places) > 1:
        way = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield element("path", d=way, class_=f"path {kind}{' dashed' if series.dashed else ''}")
    if series.joined and len(places) > _MOST_DOTS:
        return
    for (x, y), (across_value, up_value) in zip(places, points, strict=True):
        said = element("title", f"{series.name}: {number(up_value)} at {number(across_value)}")
        radius = 3.5 if series.joined else 2.5
        yield element(
            "circle", said, cx=f"{x:.1f}", cy=f"{y:.1f}", r=radius, class_=kind + ("" if series.joined else " dots")
        )
