"""A sweep over levels of load."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tuneserve.bench._load import Target
from tuneserve.bench._result import Level, RunResult
from tuneserve.bench._summary import summarise
from tuneserve.bench._workload import Workload
from tuneserve.errors import EngineError

_WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Progress:
    """How far a run is: ``done`` of ``requests`` have ended."""

    level: Level
    run: int
    done: int
    requests: int


def measure(
    target: Target, workload: Workload, watch: Callable[[Progress], object] | None = None
) -> Iterator[RunResult]:
    """Yield the result of each run as soon as it is there; before each level, requests that do not count warm it up.

    ``watch`` is called, on any thread, as requests end.

    Raises:
        InputError: the workload is out of range.
        EngineError: no request of a run was answered; the message has what the first of them got.
    """
    workload.check()
    loads = workload.loads(target.vocab_size, target.models)
    for level in workload.levels:
        target.run(loads.warm_up(level, min(_WARM_UP_TOKENS, workload.new_tokens)), lambda: None)
        for run in range(workload.runs):
            load = loads.run(level)
            timed = target.run(load, _counter(watch, level, run, len(load.prompts)))
            if all(request.error is not None for request in timed):
                raise EngineError(f"{target.name} answered none of {len(timed)} requests: {timed[0].error}")
            sequences, tokens = level.concurrency, workload.prompt_tokens + workload.new_tokens // 2
            yield summarise(
                timed,
                workload,
                level,
                run,
                target=target.name,
                about=target.about,
                models=max(1, len(target.models)),
                limit=None if sequences is None else target.bandwidth_limit(sequences, tokens),
            )


def _counter(watch: Callable[[Progress], object] | None, level: Level, run: int, requests: int) -> Callable[[], None]:
    lock, done = threading.Lock(), 0

    def count() -> None:
        nonlocal done
        with lock:
            done += 1
            if watch is not None:
                watch(Progress(level, run, done, requests))

    if watch is not None:
        watch(Progress(level, run, 0, requests))
    return count
