"""Protects: points stand where their numbers say, and no number breaks a plot."""

import math
import re
from collections.abc import Sequence

import pytest

from tuneserve.report import Bar, Part, Series, bars, plot


def circles(markup: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', markup)]


def ticks(markup: str, anchor: str) -> dict[float, float]:
    """Return the numbers along an axis with their places."""
    place = "y" if anchor == "end" else "x"
    pattern = rf'<text x="([\d.]+)" y="([\d.]+)" text-anchor="{anchor}">([\d.,e+-]+)</text>'
    found = re.findall(pattern, markup)
    return {float(number.replace(",", "")): float(x if place == "x" else y) for x, y, number in found}


@pytest.mark.parametrize("log", [False, True])
def test_points_stand_between_the_numbers_of_their_axes(log: bool) -> None:
    points = [(1.0, 1.0), (10.0, 30.0), (100.0, 1000.0)]
    markup = plot("c", [Series("s", points, 0)], x="x", y="y", log_x=log, log_y=log)
    for axis, anchor in ((0, "middle"), (1, "end")):
        places = ticks(markup, anchor)
        assert 2 <= len(places) <= 9
        (low, low_place), (high, high_place) = min(places.items()), max(places.items())
        for point, place in zip(points, circles(markup), strict=True):
            value = point[axis]
            share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
            # Numbers stand a few pixels below their line.
            assert place[axis] == pytest.approx(low_place - 4 * axis + share * (high_place - low_place), abs=0.2)


@pytest.mark.parametrize(
    "points",
    [[], [(0, 0)], [(5, 5), (5, 5)], [(1, math.nan), (2, math.inf)], [(-1, -1), (0, 0), (1, 1e-300)],
     [(1, 1e300), (2, 1)], [(1, 3.1), (2, 4.4)], [(i, 10.0**i) for i in range(-20, 21)]],
)  # fmt: skip
@pytest.mark.parametrize("log", [False, True])
def test_no_numbers_break_a_plot(points: Sequence[tuple[float, float]], log: bool) -> None:
    markup = plot("c", [Series("s", points, 0)], x="x", y="y", log_x=log, log_y=log)
    assert "nan" not in markup.lower() and "inf" not in markup.lower()
    drawn = [point for point in points if all(abs(v) <= 1e100 and (v >= 1e-100 or not log) for v in point)]
    assert len(circles(markup)) == len(drawn)
    if not drawn:
        assert "nothing to draw" in markup
    for x, y in circles(markup):
        assert 0 <= x <= 560 and 0 <= y <= 320
    if drawn:
        assert len(ticks(markup, "end")) >= 2


def test_bars_are_as_long_as_their_parts_are_large() -> None:
    markup = bars(
        "c", [Bar("b", [Part("one", 25.0, "25"), Part("two", 50.0, "50")])], limit=90, limit_name="l", whole=100
    )
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', markup)]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.25, 0.5])
    over = bars("c", [Bar("b", [Part("one", 200.0, "200")])], limit=90, limit_name="l", whole=100)
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', over)]
    assert widths == pytest.approx([380, 760])
