"""What changed between two measurements, beyond the noise between their runs."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

from tuneserve.bench._result import Level, RunResult
from tuneserve.errors import InputError

# The odds of calling a change what is none.
_SIGNIFICANT = 0.05
# With more runs the odds are smaller still, and long to compute.
_ENOUGH = 100
_GOODPUT = "goodput, requests/s"
_METRICS: dict[str, Callable[[RunResult], float | None]] = {
    "tokens/s": lambda result: result.tokens_per_second,
    "first token p50, ms": lambda result: result.first_token.p50,
    "first token p99, ms": lambda result: result.first_token.p99,
    "inter-token p50, ms": lambda result: result.inter_token.p50 if result.inter_token else None,
    "inter-token p99, ms": lambda result: result.inter_token.p99 if result.inter_token else None,
    "end to end p50, ms": lambda result: result.end_to_end.p50,
    "end to end p99, ms": lambda result: result.end_to_end.p99,
    _GOODPUT: lambda result: result.goodput,
}
_MORE_IS_BETTER = ("tokens/s", _GOODPUT)


@dataclass(frozen=True)
class Change:
    """A number of one level, in the median of the runs of each side.

    ``beyond_noise`` says that every run of one side is above every run of the other, which equal sides would be with
    the probability ``odds`` (the Mann-Whitney test, exactly). ``better`` is whether it went the right way.
    """

    concurrency: int | None
    rate: float | None
    metric: str
    before: float
    after: float
    odds: float
    beyond_noise: bool
    better: bool

    @property
    def level(self) -> Level:
        """At which level."""
        return Level(self.concurrency, self.rate)


def compare(before: Sequence[RunResult], after: Sequence[RunResult]) -> list[Change]:
    """Return the changes at each level that both sides measured with the same workload.

    Raises:
        InputError: there is no such level, or there are too few runs to tell a change from noise.
    """
    changes = []
    old, new = _levels(before), _levels(after)
    for workload in [key for key in new if key in old]:
        counts = [min(len(side[workload]), _ENOUGH) for side in (old, new)]
        odds = 2 / comb(sum(counts), counts[0])
        if odds > _SIGNIFICANT:
            raise InputError(
                f"{len(old[workload])} and {len(new[workload])} runs are too few to tell a change from noise; "
                "measure each side with --runs 4 or more."
            )
        targets = {(each.first_token_target, each.inter_token_target) for each in (*old[workload], *new[workload])}
        for metric, value in _METRICS.items():
            if metric == _GOODPUT and len(targets) > 1:
                continue
            was = [number for result in old[workload] if (number := value(result)) is not None]
            now = [number for result in new[workload] if (number := value(result)) is not None]
            if len(was) == len(old[workload]) and len(now) == len(new[workload]):
                changes.append(_change(new[workload][0].level, metric, was, now, odds))
    if not changes:
        raise InputError(
            "the two measurements have no level in common; use the same --concurrency or --rate, --requests, "
            "--prompt-tokens, --shared-prefix, --new-tokens and number of models."
        )
    return changes


def _change(level: Level, metric: str, was: list[float], now: list[float], odds: float) -> Change:
    apart = max(was) < min(now) or max(now) < min(was)
    before, after = median(was), median(now)
    better = after > before if metric in _MORE_IS_BETTER else after < before
    return Change(level.concurrency, level.rate, metric, before, after, odds, apart, better)


def _levels(results: Sequence[RunResult]) -> dict[tuple[object, ...], list[RunResult]]:
    levels: dict[tuple[object, ...], list[RunResult]] = defaultdict(list)
    for result in results:
        levels[result.workload].append(result)
    return levels
