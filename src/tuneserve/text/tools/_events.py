"""What a model says, as it comes: text, thoughts and calls."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text thought before the answer."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call of the function ``name`` begins; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of a call's arguments; joined, they are one JSON object."""

    index: int
    fragment: str


@dataclass(frozen=True)
class CallEnded:
    """The call is complete."""

    index: int


Event = Content | Reasoning | CallStarted | CallArguments | CallEnded


@dataclass(frozen=True)
class Call:
    """A whole call: a function's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str
