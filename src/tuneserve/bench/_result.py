"""What was seen of each request, and what it comes to in one run."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Level:
    """One level of a sweep: so many requests at once, or so many per second."""

    concurrency: int | None
    rate: float | None

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} per second"


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

    Closed load has ``concurrency`` requests on their way, open load ``rate`` requests a second. ``shared_prefix`` of
    the ``prompt_tokens`` were the same in all prompts, and ``models`` shared the requests. ``good`` requests kept to
    the targets (milliseconds), None where there was none. ``limit`` is the tokens per second that memory bandwidth
    allows at this concurrency, None where that is not known.
    """

    target: str
    concurrency: int | None
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
    rate: float | None = None
    shared_prefix: int = 0
    models: int = 1
    first_token_target: float | None = None
    inter_token_target: float | None = None
    good: int | None = None
    limit: float | None = None
    about: dict[str, str] = {}
    version: str = __version__

    @property
    def level(self) -> Level:
        """How much load there was."""
        return Level(self.concurrency, self.rate)

    @property
    def workload(self) -> tuple[int | None, float | None, int, int, int, int, int]:
        """What has to be equal for two results to be compared."""
        return (
            self.concurrency, self.rate, self.requests, self.prompt_tokens, self.shared_prefix, self.new_tokens,
            self.models,
        )  # fmt: skip

    @property
    def goodput(self) -> float | None:
        """Requests per second that kept to the targets (arXiv:2401.09670), None without targets."""
        return None if self.good is None else round(self.good / self.seconds, 3) if self.seconds > 0 else 0.0
