"""Measurements as lines of text."""

from collections.abc import Sequence
from statistics import median

from tuneserve.bench import Change, Level, RunResult
from tuneserve.cli._run import console, output

_SHARES = ("p50", "p90", "p99")


def print_level(results: Sequence[RunResult], *, first: bool) -> None:
    """Print the runs of one level as a line, the ``first`` with headings above."""
    targets = results[0].good is not None
    if first:
        output.print(
            f"{'':>11}  {'tok/s':>22}  {'first token, ms':>26}  {'inter-token, ms':>26}  {'end to end, ms':>26}"
            f"{'  within targets' if targets else ''}\n"
            f"{_heading(results[0].level):>11}  {'median (lowest-highest)':>22} "
            + f" {'p50':>8} {'p90':>8} {'p99':>8} " * 3
            + ("      requests/s" if targets else ""),
            soft_wrap=True,
        )
    speeds = [result.tokens_per_second for result in results]
    row = f"{_amount(results[0].level):>11}  {median(speeds):>9,.1f} ({min(speeds):,.0f}-{max(speeds):,.0f})".ljust(37)
    for name in ("first_token", "inter_token", "end_to_end"):
        found = [value for result in results if (value := getattr(result, name)) is not None]
        cells = [f"{median(getattr(each, p) for each in found):8,.1f}" if found else " " * 8 for p in _SHARES]
        row += f" {' '.join(cells)} "
    if goodput := [result.goodput for result in results if result.goodput is not None]:
        row += f"{median(goodput):>16,.2f}"
    output.print(row, soft_wrap=True)
    if failed := sum(result.failed for result in results):
        error = next(result.error for result in results if result.error)
        console.print(f"{failed} requests failed, the first: {error}", markup=False, soft_wrap=True)


def print_changes(changes: Sequence[Change]) -> None:
    """Print what changed, a line for each number."""
    output.print(f"\n{_heading(changes[0].level):>11}  {'':<20}  {'before':>10}  {'now':>10}")
    for change in changes:
        ratio = f"{change.after / change.before - 1:+.1%}" if change.before else ""
        verdict = ("better" if change.better else "worse") if change.beyond_noise else "within noise"
        output.print(
            f"{_amount(change.level):>11}  {change.metric:<20}  {change.before:>10,.1f}  {change.after:>10,.1f}  "
            f"{ratio:>7}  {verdict}",
            soft_wrap=True,
        )


def _heading(level: Level) -> str:
    return "concurrency" if level.rate is None else "requests/s"


def _amount(level: Level) -> str:
    return str(level.concurrency) if level.rate is None else f"{level.rate:g}"
