"""Which sequences run in the next step, and in which cache slots. No torch here.

Running sequences occupy slots 0, 1, 2, ... without gaps, those that have caught up with their prompt first: a decode
step then reads one contiguous piece of the cache.
"""

from collections import deque
from dataclasses import dataclass

from tuneserve.native._sequence import Sequence


@dataclass(frozen=True)
class Segment:
    """``count`` tokens of one sequence, from position ``start`` on, computed in one step in cache slot ``slot``."""

    sequence: Sequence
    slot: int
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's last token, so that the next one can be chosen."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True)
class Step:
    """One batch: the first ``decodes`` segments are single tokens in slots 0 to ``decodes`` - 1."""

    segments: tuple[Segment, ...]
    decodes: int


@dataclass(frozen=True)
class Move:
    """The first ``length`` cached tokens of slot ``source`` are now those of slot ``target``."""

    source: int
    target: int
    length: int


class Scheduler:
    """First come, first served; prompts are computed in chunks beside the decoding sequences.

    Args:
        max_running: sequences that share the cache, at least 1.
        max_step_tokens: tokens of one step, at least ``max_running``: a sequence that decodes is never left out.
    """

    def __init__(self, max_running: int, max_step_tokens: int) -> None:
        assert 1 <= max_running <= max_step_tokens
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> Step | None:
        """Admit what fits and return the next step; None when there is nothing to do."""
        while self.waiting and len(self.running) < self.max_running:
            self.running.append(self.waiting.popleft())
        decodes = self._decodes()
        segments = [
            Segment(sequence, slot, sequence.computed, 1) for slot, sequence in enumerate(self.running[:decodes])
        ]
        budget = self.max_step_tokens - decodes
        for slot, sequence in enumerate(self.running[decodes:], start=decodes):
            if count := min(budget, sequence.pending):
                segments.append(Segment(sequence, slot, sequence.computed, count))
                budget -= count
        return Step(tuple(segments), decodes) if segments else None

    def remove(self, sequence: Sequence) -> list[Move]:
        """Take a sequence out, wherever it is; return the moves that close its slot, to be made in order."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return []
        if sequence not in self.running:
            return []
        slot, last_decode = self.running.index(sequence), self._decodes() - 1
        moves = []
        if slot <= last_decode:
            if slot < last_decode:
                moves.append(self._move(last_decode, slot))
            slot = last_decode
        # What is still in its prompt keeps its order; only the first of these has anything in the cache.
        moves += [self._move(target + 1, target) for target in range(slot, len(self.running) - 1)]
        self.running.pop()
        return [move for move in moves if move.length]

    def _move(self, source: int, target: int) -> Move:
        self.running[target] = self.running[source]
        return Move(source, target, self.running[source].computed)

    def _decodes(self) -> int:
        for slot, sequence in enumerate(self.running):
            if sequence.pending > 1:
                return slot
        return len(self.running)
