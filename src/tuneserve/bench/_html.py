"""Measurements as a page: how latency and throughput go with the load."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from tuneserve.bench._compare import Change
from tuneserve.bench._result import Level, Percentiles, RunResult
from tuneserve.report import Html, Line, Series, element, joined, page, plot, section, table

_SHARES = ("p50", "p90", "p99")
_WIDE = 8
_Value = Callable[[RunResult], float | None]


def html_report(results: Sequence[RunResult], before: Sequence[RunResult] = (), changes: Sequence[Change] = ()) -> str:
    """Return a page of at least one result, with what was measured ``before`` as dashed lines and its ``changes``."""
    first = results[0]
    load = f"{first.prompt_tokens:,} tokens in, {first.new_tokens:,} out"
    if first.shared_prefix:
        load += f", the first {first.shared_prefix:,} of each prompt the same"
    about = ", ".join(f"{name} {value}" for name, value in first.about.items())
    sections = [
        _tiles(results),
        section("Under load", element("div", *_plots(results, before), class_="plots")),
        section("Numbers", _numbers(results), element("p", _explanation(results), class_="note")),
    ]
    if changes:
        sections.append(section("Against the measurement before", _changes(changes)))
    if errors := list(dict.fromkeys(result.error for result in results if result.error)):
        sections.append(section("What failed requests said", *(element("pre", error) for error in errors[:5])))
    return page(f"Under load: {first.target}", f"{load} · {about}", sections)


def _explanation(results: Sequence[RunResult]) -> str:
    runs = max(len(each) for _, each in _levels(results))
    text = (
        f"Medians of up to {runs} runs; times are p50 / p90 / p99 in milliseconds. "
        "Throughput counts the tokens of answers over a whole run, prompts included in its time."
    )
    if results[0].rate is not None:
        text += " Requests arrive at random and do not wait for one another, so times include waiting for a place."
    if results[0].good is not None:
        text += " Goodput counts requests that kept to the targets."
    return text


def _levels(results: Sequence[RunResult]) -> list[tuple[Level, list[RunResult]]]:
    levels: dict[Level, list[RunResult]] = {}
    for result in results:
        levels.setdefault(result.level, []).append(result)
    return list(levels.items())


def _load(result: RunResult) -> float:
    load = result.concurrency if result.rate is None else result.rate
    return float(load or 0)


def _points(results: Sequence[RunResult], value: _Value) -> list[tuple[float, float]]:
    found = []
    for _, runs in _levels(results):
        if values := [number for run in runs if (number := value(run)) is not None]:
            found.append((_load(runs[0]), median(values)))
    return found


def _tiles(results: Sequence[RunResult]) -> Html:
    best_level, best = max(_levels(results), key=lambda found: median(run.tokens_per_second for run in found[1]))
    tiles = [(f"{median(run.tokens_per_second for run in best):,.0f} tokens/s", f"at most, {best_level}")]
    level, runs = _levels(results)[0]
    tiles.append((f"{median(run.first_token.p50 for run in runs):,.1f} ms", f"to the first token (p50), {level}"))
    between = [run.inter_token.p50 for run in runs if run.inter_token]
    if between:
        tiles.append((f"{median(between):,.2f} ms", f"between tokens (p50), {level}"))
    good = [(median(run.goodput for run in each if run.goodput is not None), name) for name, each in _levels(results)
            if all(run.goodput is not None for run in each)]  # fmt: skip
    if good:
        most, where = max(good, key=lambda found: found[0])
        tiles.append((f"{most:,.2f} requests/s", f"within the targets at most, {where}"))
    failed = sum(run.failed for run in results)
    if failed:
        tiles.append((f"{failed:,} of {sum(run.requests for run in results):,}", "requests failed"))
    return element(
        "div", *(element("div", element("b", value), element("span", name)) for value, name in tiles), class_="tiles"
    )


def _plots(results: Sequence[RunResult], before: Sequence[RunResult]) -> Iterator[Html]:
    first = results[0]
    before = [each for each in before if (each.rate is None) == (first.rate is None)]
    name = "requests at once" if first.rate is None else "requests per second"
    loads = sorted({_load(each) for each in (*results, *before)})
    log = len(loads) > 1 and loads[-1] >= _WIDE * loads[0]

    def drawn(
        caption: str, series: Sequence[Series], y: str, *lines: Line, log_y: bool = False, note: str = ""
    ) -> Html:
        return plot(
            caption, series, x=name, y=y, log_x=log, log_y=log_y, x_ticks=loads if len(loads) <= _WIDE else None,
            lines=lines, note=note or None,
        )  # fmt: skip

    yield _throughput(results, before, drawn)
    yield drawn(
        "Time to the first token", _times(results, before, lambda each: each.first_token), "milliseconds",
        *_target(first.first_token_target), log_y=True,
    )  # fmt: skip
    yield drawn(
        "Time between tokens", _times(results, before, lambda each: each.inter_token), "milliseconds",
        *_target(first.inter_token_target), log_y=True,
    )  # fmt: skip
    if any(result.good is not None for result in results):
        arrived = [] if first.rate is None else [Series("arriving", [(load, load) for load in loads], 4, dashed=True)]
        kept = Series("within the targets", _points(results, lambda each: each.goodput), 2)
        done = Series("answered", _points(results, _answered), 0)
        yield drawn("Goodput", [*arrived, done, kept], "requests per second")
    else:
        yield drawn("End to end", _times(results, before, lambda each: each.end_to_end), "milliseconds", log_y=True)


def _answered(result: RunResult) -> float:
    return (result.requests - result.failed) / result.seconds if result.seconds else 0.0


def _throughput(results: Sequence[RunResult], before: Sequence[RunResult], drawn: Callable[..., Html]) -> Html:
    series = [Series("measured", _points(results, _speed), 0)]
    runs = [(_load(result), result.tokens_per_second) for result in results]
    if len(runs) > len(_levels(results)):
        series.append(Series("single runs", runs, 0, joined=False))
    if before:
        series.append(Series("before", _points(before, _speed), 4, dashed=True))
    limits = _points(results, lambda each: each.limit)
    if not limits:
        return drawn("Throughput", series, "tokens per second")
    series.append(Series("what memory bandwidth allows", limits, 1, dashed=True))
    note = "The limit is for decoding alone: each step reads the weights once, and the cache of each sequence."
    return drawn("Throughput", series, "tokens per second", log_y=True, note=note)


def _speed(result: RunResult) -> float:
    return result.tokens_per_second


def _times(
    results: Sequence[RunResult], before: Sequence[RunResult], times: Callable[[RunResult], Percentiles | None]
) -> list[Series]:
    def at(share: str) -> _Value:
        return lambda result: None if (found := times(result)) is None else float(getattr(found, share))

    series = [Series(share, _points(results, at(share)), colour) for colour, share in enumerate(_SHARES)]
    return series + ([Series("p50 before", _points(before, at("p50")), 4, dashed=True)] if before else [])


def _target(milliseconds: float | None) -> list[Line]:
    return [] if milliseconds is None else [Line(f"target, {milliseconds:g} ms", milliseconds)]


def _numbers(results: Sequence[RunResult]) -> Html:
    headings = ["load", "runs", "requests", "failed", "tokens/s", "first token", "between tokens", "end to end"]
    with_goodput = any(result.good is not None for result in results)
    rows = []
    for level, runs in _levels(results):
        speeds = [run.tokens_per_second for run in runs]
        sums = (len(runs), sum(run.requests for run in runs), sum(run.failed for run in runs))
        row = [str(level), *(f"{value:,}" for value in sums)]
        row.append(f"{median(speeds):,.1f} ({min(speeds):,.0f}–{max(speeds):,.0f})")
        for name in ("first_token", "inter_token", "end_to_end"):
            found = [value for run in runs if (value := getattr(run, name)) is not None]
            shares = [f"{median(getattr(each, share) for each in found):,.1f}" for share in _SHARES] if found else ["–"]
            row.append(" / ".join(shares))
        goodput = [run.goodput for run in runs if run.goodput is not None]
        rows.append([*row, f"{median(goodput):,.2f}" if goodput else "–"] if with_goodput else row)
    return table([*headings, "goodput, 1/s"] if with_goodput else headings, rows)


def _changes(changes: Sequence[Change]) -> Html:
    rows = []
    for change in changes:
        ratio = f"{change.after / change.before - 1:+.1%}" if change.before else "–"
        verdict = element("span", "better" if change.better else "worse", class_="good" if change.better else "bad")
        numbers = [f"{change.before:,.1f}", f"{change.after:,.1f}", ratio]
        rows.append([f"{change.level}: {change.metric}", *numbers, verdict if change.beyond_noise else "within noise"])
    note = "Beyond noise: every run of one side is above every run of the other (the Mann-Whitney test)."
    return joined([table(["", "before", "now", "change", ""], rows), element("p", note, class_="note")])
