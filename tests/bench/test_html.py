"""Protects: the page of a measurement shows levels, targets and changes, whatever a server calls itself."""

import re

import msgspec
import pytest

from tuneserve.bench import Level, RunResult, Timed, Workload, compare, html_report, summarise


def measured(level: Level, run: int, speed: float = 100.0, error: str | None = None) -> RunResult:
    workload = Workload(first_token_target=200.0)
    timed = [Timed(0.0, (0.1, 0.1 + 1 / speed), 2)] * 3 + ([] if error is None else [Timed(0.0, (), 0, error)])
    return summarise(timed, workload, level, run, target="<i>server</i>", about={"model": "<u>m</u>"}, limit=500.0)


def test_every_level_is_drawn_with_its_limit_and_its_target() -> None:
    results = [measured(Level(count, None), run) for count in (1, 4, 16) for run in range(4)]
    page = html_report(results)
    assert re.findall(r"<td>(\d+) at once</td>", page) == ["1", "4", "16"]
    for caption in ("Throughput", "Time to the first token", "Time between tokens", "Goodput"):
        assert f"<figcaption>{caption}</figcaption>" in page
    assert "target, 200 ms" in page and "what memory bandwidth allows" in page
    assert "<i>server" not in page and "<u>m" not in page and "&lt;i&gt;server" in page


def test_changes_and_errors_are_shown() -> None:
    before = [measured(Level(4, None), run, 50.0) for run in range(4)]
    after = [measured(Level(4, None), run, 100.0, "<b>overloaded</b>") for run in range(4)]
    page = html_report(after, before, compare(before, [msgspec.structs.replace(each, requests=3) for each in after]))
    assert "4 at once: tokens/s" in page and ">better<" in page and "before" in page
    assert "4 of 16" in page and "&lt;b&gt;overloaded" in page


def test_open_load_is_by_rate_and_has_no_limit() -> None:
    results = [msgspec.structs.replace(measured(Level(None, rate), 0), limit=None) for rate in (0.5, 2.0)]
    page = html_report(results)
    assert "requests per second" in page and ">arriving<" in page and "memory bandwidth" not in page
    assert re.findall(r"<td>([\d.]+) per second</td>", page) == ["0.5", "2"]


@pytest.mark.parametrize("answer", [(0.1,), (0.0,)])
def test_answers_in_one_piece_or_in_no_time_are_drawn(answer: tuple[float, ...]) -> None:
    result = summarise([Timed(0.0, answer, 1)], Workload(), Level(1, None), 0, target="x", about={})
    assert "Numbers" in html_report([result])
