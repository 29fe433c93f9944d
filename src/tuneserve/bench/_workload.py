"""A sweep of load: which requests there are at each of its levels, and when they are sent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tuneserve.bench._load import Load, Prompt
from tuneserve.bench._result import Level
from tuneserve.errors import InputError

MOST_CONCURRENCY = 4096
MOST_REQUESTS = 1_000_000
MOST_TOKENS = 1 << 20
MOST_RATE = 10_000.0
# How long requests arrive in an open run, if their number is not given.
_OPEN_SECONDS = 10
_LEAST_ARRIVALS = 10
# Below are tokens with a meaning of their own, in most vocabularies.
_FIRST_TOKEN = 100


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A sweep. Its levels are those of ``concurrency`` (closed load), or of ``rates`` where there are any (open load).

    Args:
        concurrency: requests on their way at once: as soon as one is answered, the next is sent.
        rates: requests per second, which arrive at random (a Poisson process) and do not wait for one another.
        requests: how many each run sends; None sends as many as are at once, or what arrives in ten seconds.
        prompt_tokens: random tokens of each prompt.
        shared_prefix: how many of these are the same in all prompts; no two are alike in the others.
        new_tokens: tokens to continue it by.
        runs: how often each level is run.
        seed: of the prompts and the arrivals.
        first_token_target: milliseconds within which a good answer begins.
        inter_token_target: milliseconds that its tokens are apart at most, on average over the answer.
    """

    concurrency: tuple[int, ...] = (1, 16, 64)
    rates: tuple[float, ...] = ()
    requests: int | None = None
    prompt_tokens: int = 32
    shared_prefix: int = 0
    new_tokens: int = 128
    runs: int = 5
    seed: int = 0
    first_token_target: float | None = None
    inter_token_target: float | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level after the other."""
        if self.rates:
            return tuple(Level(None, rate) for rate in self.rates)
        return tuple(Level(concurrency, None) for concurrency in self.concurrency)

    def check(self) -> None:
        """Check the ranges.

        Raises:
            InputError: a number is out of its range.
        """
        limits = {
            "concurrency": (self.concurrency, MOST_CONCURRENCY),
            "requests": (() if self.requests is None else (self.requests,), MOST_REQUESTS),
            "prompt-tokens": ((self.prompt_tokens,), MOST_TOKENS),
            "new-tokens": ((self.new_tokens,), MOST_TOKENS),
            "runs": ((self.runs,), 1000),
        }
        for name, (values, most) in limits.items():
            for value in values:
                if not 1 <= value <= most:
                    raise InputError(f"--{name} is {value}; choose from 1 to {most}.")
        for name, levels in (("concurrency", self.concurrency), ("rate", self.rates)):
            if len(set(levels)) < len(levels) or not self.levels:
                raise InputError(f"--{name} is empty or names a number twice; give each once, like 1,16,64.")
        if not 0 <= self.shared_prefix < self.prompt_tokens:
            raise InputError(
                f"--shared-prefix is {self.shared_prefix}; choose from 0 to {self.prompt_tokens - 1}, one less than "
                "--prompt-tokens."
            )
        for name, target in (("ttft", self.first_token_target), ("itl", self.inter_token_target)):
            if target is not None and not 0 < target < math.inf:
                raise InputError(f"--{name}-target is {target:g}; give milliseconds above 0.")
        for rate in self.rates:
            if not 0 < rate <= MOST_RATE:
                raise InputError(f"--rate is {rate:g}; choose above 0, up to {MOST_RATE:,.0f} requests per second.")
            if self.count(Level(None, rate)) > MOST_CONCURRENCY:
                raise InputError(
                    f"at {rate:g} per second a run has more than {MOST_CONCURRENCY:,} requests, which may all be on "
                    "their way at once; give fewer with --requests."
                )

    def count(self, level: Level) -> int:
        """Return how many requests a run of a level has."""
        if self.requests is not None:
            return self.requests
        if level.rate is not None:
            return max(_LEAST_ARRIVALS, math.ceil(level.rate * _OPEN_SECONDS))
        assert level.concurrency is not None
        return level.concurrency

    def loads(self, vocab_size: int, models: Sequence[str]) -> "LoadMaker":
        """Return what makes the loads, for a vocabulary and the models to spread them over."""
        return LoadMaker(self, vocab_size, models)


class LoadMaker:
    """Makes one load after the other, all different, the same for the same seed."""

    def __init__(self, workload: Workload, vocab_size: int, models: Sequence[str]) -> None:
        self._workload = workload
        self._random = Random(workload.seed)  # noqa: S311
        self._tokens = range(min(_FIRST_TOKEN, vocab_size - 1), vocab_size)
        self._models = models
        self._prefix = self._some(workload.shared_prefix)

    def warm_up(self, level: Level, new_tokens: int) -> Load:
        """Return closed load of as many requests as a level has at once, or one, and one for each model."""
        count = max(level.concurrency or 1, len(self._models))
        return Load(prompts=self._prompts(count), new_tokens=new_tokens, concurrency=level.concurrency or 1)

    def run(self, level: Level) -> Load:
        """Return the load of one run."""
        count = self._workload.count(level)
        return Load(
            prompts=self._prompts(count),
            new_tokens=self._workload.new_tokens,
            concurrency=level.concurrency or count,
            arrivals=None if level.rate is None else self._arrivals(count, level.rate),
        )

    def _prompts(self, count: int) -> list[Prompt]:
        own = self._workload.prompt_tokens - self._workload.shared_prefix
        # In turn, and the turns in random order: each model gets the same share of the load.
        names: list[str | None] = [
            self._models[index % len(self._models)] if self._models else None for index in range(count)
        ]
        self._random.shuffle(names)
        return [Prompt([*self._prefix, *self._some(own)], name) for name in names]

    def _some(self, count: int) -> list[int]:
        return self._random.choices(self._tokens, k=count)

    def _arrivals(self, count: int, rate: float) -> tuple[float, ...]:
        times, now = [], 0.0
        for _ in range(count):
            times.append(now)
            now += self._random.expovariate(rate)
        return tuple(times)
