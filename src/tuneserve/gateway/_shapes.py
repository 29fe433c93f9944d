"""How an API says what was generated: the one interface that each of them implements."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._generate import Piece
from tuneserve.gateway._parts import Part, Sample

Json = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One server-sent event; ``name`` None is one without."""

    data: Json
    name: str | None = None


@dataclass(frozen=True)
class Usage:
    """Counts of tokens: the prompts', all that was generated, and what of it was thought.

    ``cached`` are those of the prompts that were found in the engine's cache, None where it does not say.
    """

    prompt: int
    generated: int = 0
    reasoning: int = 0
    cached: int | None = None


class Shape(ABC):
    """One answer in the form of one API. Samples are known by their index."""

    ending = b""

    def start(self, usage: Usage) -> Sequence[Event]:  # noqa: ARG002
        """Return the events before all others."""
        return ()

    @abstractmethod
    def events(self, index: int, sample: Sample, piece: Piece, parts: Sequence[Part]) -> Sequence[Event]:
        """Return the events for a piece, which ``sample`` has taken and taken apart."""

    @abstractmethod
    def end(self, samples: Sequence[Sample], usage: Usage) -> Sequence[Event]:
        """Return the events after all others."""

    @abstractmethod
    def whole(self, samples: Sequence[Sample], usage: Usage) -> Json:
        """Return the answer in one piece."""

    def failure(self, error: ApiError) -> Event:
        """Return the event that ends a stream early."""
        return Event(error.body())
