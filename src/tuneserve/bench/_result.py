"""What was seen of each request, and what it comes to in one run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from tuneserve._version import __version__


@dataclass(frozen=True)
class Timed:
    """One request: seconds, on one clock, when it was sent and when each piece of the answer came.

    A piece is usually one token; ``tokens`` is how many there were. ``error`` says why there is no whole answer.
    """

    sent: float
    pieces: tuple[float, ...]
    tokens: int
    error: str | None = None


class Percentiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds that 50, 90 and 99 of 100 stay within."""

    p50: float
    p90: float
    p99: float


class RunResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of a workload; ``run`` counts its repetitions from 0.

    ``seconds`` pass from the first request to the last token, ``tokens`` come in them. ``first_token`` and
    ``end_to_end`` are over requests, ``inter_token`` over the times between the pieces of an answer, None where each
    was a single piece. ``failed`` requests are in none of these; ``error`` is what the first of them said.
    """

    target: str
    concurrency: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    run: int
    seconds: float
    tokens: int
    tokens_per_second: float
    first_token: Percentiles
    inter_token: Percentiles | None
    end_to_end: Percentiles
    failed: int = 0
    error: str | None = None
    about: dict[str, str] = {}
    version: str = __version__

    @property
    def workload(self) -> tuple[int, int, int, int]:
        """What has to be equal for two results to be compared."""
        return self.concurrency, self.requests, self.prompt_tokens, self.new_tokens


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
    *,
    target: str,
    concurrency: int,
    prompt_tokens: int,
    new_tokens: int,
    run: int,
    about: dict[str, str],
) -> RunResult:
    """Return what a run comes to; at least one request must have been answered."""
    answered = [request for request in timed if request.error is None]
    errors = [request.error for request in timed if request.error is not None]
    gaps = [after - before for request in answered for before, after in pairwise(request.pieces)]
    seconds = max(request.pieces[-1] for request in answered) - min(request.sent for request in timed)
    tokens = sum(request.tokens for request in answered)
    return RunResult(
        target=target,
        concurrency=concurrency,
        requests=len(timed),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        run=run,
        seconds=round(seconds, 4),
        tokens=tokens,
        tokens_per_second=round(tokens / seconds, 2) if seconds > 0 else 0.0,
        first_token=percentiles(request.pieces[0] - request.sent for request in answered),
        inter_token=percentiles(gaps) if gaps else None,
        end_to_end=percentiles(request.pieces[-1] - request.sent for request in answered),
        failed=len(errors),
        error=errors[0] if errors else None,
        about=about,
    )
