"""What load is: requests, and when they are sent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tuneserve.bench._result import Timed


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the name of the model or adapter that is to continue it, None where there is but one."""

    ids: list[int]
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Load:
    """The requests of one run, each to be continued by ``new_tokens``.

    Open load sends each at its time in ``arrivals``, in seconds after the run's start, whatever has become of those
    before. Without, the load is closed: ``concurrency`` are kept on their way.
    """

    prompts: Sequence[Prompt]
    new_tokens: int
    concurrency: int
    arrivals: tuple[float, ...] | None = None


class Target(Protocol):
    """What is measured: it continues prompts of token ids. ``models`` are those to choose from, empty where one."""

    name: str
    vocab_size: int
    about: dict[str, str]
    models: tuple[str, ...]

    def run(self, load: Load, done: Callable[[], None]) -> list[Timed]:
        """Continue each prompt greedily; ``done`` is called, on any thread, as soon as one is."""

    def bandwidth_limit(self, sequences: int, tokens: int) -> float | None:
        """Return the tokens per second that memory bandwidth allows so many sequences of so many tokens.

        None where the weights or the bandwidth are not known.
        """
