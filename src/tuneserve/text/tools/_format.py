"""What a way of writing calls, or of thinking, is."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tuneserve.text._tokenizer import Tokenizer
from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import Said

# Takes what follows a beginning character by character and returns True with the last of what it reads; False, and that
# character is not taken, where it cannot be read on.
Reader = Generator[None, str, bool]


class ToolFormat(Protocol):
    """How a family of models writes calls.

    ``starts`` begin a call anywhere; ``bare`` do so only where the answer begins or another call has ended. ``ends``
    may follow a call and are no content. ``tokens`` are the ids of the markers that are special tokens.
    """

    @property
    def name(self) -> str: ...
    @property
    def tokens(self) -> Mapping[str, int]: ...
    @property
    def starts(self) -> tuple[str, ...]: ...
    @property
    def bare(self) -> tuple[str, ...]: ...
    @property
    def ends(self) -> tuple[str, ...]: ...

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:
        """Return a reader of what follows ``start``, which adds to ``said`` what is certain.

        What it has read since it last did so is no call's yet: content, should it end there.
        """

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:
        """Return lark rules of which ``calls`` is one call, or several where they may be ``parallel``."""


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model sets its thoughts apart: between ``start`` and ``end``, before the answer.

    ``name`` is ``harmony`` for channels, which have no such markers.
    """

    name: str
    start: str
    end: str
    tokens: Mapping[str, int] = field(default_factory=dict)

    def opened_by(self, prompt: str) -> bool:
        """Whether ``prompt`` ends within thoughts."""
        return self.name != "harmony" and prompt.rstrip().endswith(self.start)


def marker_ids(tokenizer: Tokenizer, markers: Sequence[str]) -> dict[str, int]:
    """Return the ids of those ``markers`` that are special tokens."""
    found = {marker: tokenizer.backend.token_to_id(marker) for marker in markers}
    return {marker: index for marker, index in found.items() if index is not None and index in tokenizer.special_ids}


def visible_ids(*formats: ToolFormat | ReasoningFormat | None) -> frozenset[int]:
    """Return the special tokens that a :class:`Parser` must see; give them to the ``Detokenizer``."""
    return frozenset(index for known in formats if known is not None for index in known.tokens.values())
