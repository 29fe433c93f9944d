"""What the requests of a run come to."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from tuneserve.bench._result import Level, Percentiles, RunResult, Timed
from tuneserve.bench._workload import Workload


def percentiles(seconds: Iterable[float]) -> Percentiles:
    """Return the percentiles of at least one time, interpolated linearly between the two nearest."""
    ordered = sorted(1e3 * value for value in seconds)
    return Percentiles(*(round(_at(ordered, share), 3) for share in (0.5, 0.9, 0.99)))


def _at(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(
    timed: Sequence[Timed],
    workload: Workload,
    level: Level,
    run: int,
    *,
    target: str,
    about: dict[str, str],
    models: int = 1,
    limit: float | None = None,
) -> RunResult:
    """Return what a run comes to; at least one request must have been answered."""
    answered = [request for request in timed if request.error is None]
    errors = [request.error for request in timed if request.error is not None]
    gaps = [after - before for request in answered for before, after in pairwise(request.pieces)]
    seconds = max(request.pieces[-1] for request in answered) - min(request.sent for request in timed)
    tokens = sum(request.tokens for request in answered)
    targets = workload.first_token_target, workload.inter_token_target
    return RunResult(
        target=target,
        concurrency=level.concurrency,
        rate=level.rate,
        requests=len(timed),
        prompt_tokens=workload.prompt_tokens,
        shared_prefix=workload.shared_prefix,
        new_tokens=workload.new_tokens,
        models=models,
        run=run,
        seconds=round(seconds, 4),
        tokens=tokens,
        tokens_per_second=round(tokens / seconds, 2) if seconds > 0 else 0.0,
        first_token=percentiles(request.pieces[0] - request.sent for request in answered),
        inter_token=percentiles(gaps) if gaps else None,
        end_to_end=percentiles(request.pieces[-1] - request.sent for request in answered),
        failed=len(errors),
        error=errors[0] if errors else None,
        first_token_target=targets[0],
        inter_token_target=targets[1],
        good=None if targets == (None, None) else sum(_is_good(request, *targets) for request in answered),
        limit=None if limit is None else round(limit, 2),
        about=about,
    )


def _is_good(request: Timed, first_token: float | None, inter_token: float | None) -> bool:
    first = 1e3 * (request.pieces[0] - request.sent)
    between = 1e3 * (request.pieces[-1] - request.pieces[0]) / max(1, request.tokens - 1)
    return (first_token is None or first <= first_token) and (inter_token is None or between <= inter_token)
