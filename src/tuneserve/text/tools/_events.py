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
    """The next piece of a call's arguments; joined, they are one JSON object, unless the model broke off or erred."""

    index: int
    fragment: str


Event = Content | Reasoning | CallStarted | CallArguments


@dataclass(frozen=True)
class Call:
    """A call as it is read: a function's name, and its arguments as the text of a JSON object, or how that begins."""

    name: str
    arguments: str


# What a reader of calls notes: a call, then the further pieces of its arguments. An empty piece settles that all that
# was read belongs to it.
Said = Call | str
