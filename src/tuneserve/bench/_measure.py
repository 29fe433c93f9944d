"""A sweep over how many requests are on their way at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from tuneserve.bench._result import RunResult, Timed, summarise
from tuneserve.errors import EngineError, InputError

MOST_CONCURRENCY = 4096
MOST_REQUESTS = 1_000_000
MOST_TOKENS = 1 << 20
# Below are tokens with a meaning of their own, in most vocabularies.
_FIRST_TOKEN = 100
_WARM_UP_TOKENS = 4


class Target(Protocol):
    """What is measured: it continues prompts of token ids."""

    name: str
    vocab_size: int
    about: dict[str, str]

    def run(self, prompts: Sequence[list[int]], new_tokens: int, concurrency: int) -> list[Timed]:
        """Continue each prompt greedily by ``new_tokens``, keeping ``concurrency`` of them on their way."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Closed-loop load: as soon as one request is answered, the next is sent.

    Args:
        concurrency: requests on their way at once, one level of the sweep after the other.
        requests: how many each run sends; None sends as many as are on their way at once.
        prompt_tokens: random tokens of each prompt, no two alike.
        new_tokens: tokens to continue it by.
        runs: how often each level is run.
        seed: of the prompts.
    """

    concurrency: tuple[int, ...] = (1, 16, 64)
    requests: int | None = None
    prompt_tokens: int = 32
    new_tokens: int = 128
    runs: int = 5
    seed: int = 0

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
        if not self.concurrency or len(set(self.concurrency)) < len(self.concurrency):
            raise InputError("--concurrency is empty or names a number twice; give each once, like 1,16,64.")


def measure(target: Target, workload: Workload) -> Iterator[RunResult]:
    """Yield the result of each run as soon as it is there; before each level, requests that do not count warm it up.

    Raises:
        InputError: the workload is out of range.
        EngineError: no request of a run was answered; the message has what the first of them got.
    """
    workload.check()
    random = Random(workload.seed)  # noqa: S311

    def prompts(count: int) -> list[list[int]]:
        first = min(_FIRST_TOKEN, target.vocab_size - 1)
        return [
            [random.randrange(first, target.vocab_size) for _ in range(workload.prompt_tokens)] for _ in range(count)
        ]

    for concurrency in workload.concurrency:
        target.run(prompts(concurrency), min(_WARM_UP_TOKENS, workload.new_tokens), concurrency)
        for run in range(workload.runs):
            timed = target.run(prompts(workload.requests or concurrency), workload.new_tokens, concurrency)
            if all(request.error is not None for request in timed):
                raise EngineError(f"{target.name} answered none of {len(timed)} requests: {timed[0].error}")
            yield summarise(
                timed,
                target=target.name,
                concurrency=concurrency,
                prompt_tokens=workload.prompt_tokens,
                new_tokens=workload.new_tokens,
                run=run,
                about=target.about,
            )
