"""Which sequences run in the next step, and how many tokens of each. No torch here."""

from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

from tuneserve.native._blocks import BLOCK_SIZE, BlockPool, blocks_for
from tuneserve.native._sequence import Sequence

# Fewer tokens than this cost a prompt about as much time as this many: the weights are read once either way.
_LEAST_SHARE = 64
# Up to 4 rows cost what one does (SmolLM2-135M, two cores), 16 twice that; beyond, a guess costs what a token does.
_DRAFT_ROWS = 16


@dataclass(frozen=True)
class Segment:
    """``count`` tokens of one sequence, from position ``start`` on, computed in one step; a draft comes last."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's last token, so that the next one can be chosen."""
        return self.end >= len(self.sequence.tokens)


@dataclass(frozen=True)
class Step:
    """One batch: the first ``decodes`` segments are the last token of their sequence; ``wiped`` blocks become zero."""

    segments: tuple[Segment, ...]
    decodes: int
    wiped: tuple[int, ...] = ()


class Scheduler:
    """Smaller priority first, then first come, first served.

    A sequence that decodes is in every step. What is left of the step's tokens goes to prompts, in chunks, fairly among
    those of equal priority. A sequence is admitted when there are blocks for all of its tokens. When the decoding ones
    outgrow the cache, or a request of smaller priority finds no room, the last in line gives its blocks up and goes
    back to waiting with all of its tokens, which will be computed again. While it runs, a sequence has a slot of its
    own, from 0 to ``max_running`` - 1, for what it carries from token to token beside its blocks.

    Args:
        pool: must have blocks for one sequence as long as any that is added.
        max_running: sequences computed together, at least 1.
        max_step_tokens: tokens of one step, at least ``max_running``.
    """

    def __init__(self, pool: BlockPool, max_running: int, max_step_tokens: int) -> None:
        assert 1 <= max_running <= max_step_tokens
        self.pool = pool
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.looked_up = 0
        self.found = 0
        self._arrivals = 0
        self._departures = 0
        self._state_slots = list(range(max_running - 1, -1, -1))

    @property
    def changes(self) -> int:
        """How often a sequence has come or gone; while it is the same, :meth:`schedule` would choose the same."""
        return self._arrivals + self._departures

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        self._departures += 1
        for line in (self.running, self.waiting):
            index = bisect_left(line, sequence.rank, key=_rank)
            if index < len(line) and line[index] is sequence:
                del line[index]
        self._free(sequence)

    def schedule(self) -> Step | None:
        """Admit what fits and return the next step; None when there is nothing to do."""
        self._grow()
        while self.waiting and self._admit(self.waiting[0]):
            pass
        decodes, prompts = self._sorted()
        drafted = self._draft(decodes)
        decodes = [sequence for sequence in decodes if not sequence.draft]
        segments = [Segment(sequence, sequence.computed, 1) for sequence in decodes]
        segments += [Segment(sequence, sequence.computed, 1 + len(sequence.draft)) for sequence in drafted]
        budget = self.max_step_tokens - sum(segment.count for segment in segments)
        for _, group in groupby(prompts, key=lambda sequence: sequence.request.priority):
            equals = list(group)
            counts = _fair([sequence.pending for sequence in equals], budget)
            pairs = zip(equals, counts, strict=True)
            segments += [Segment(sequence, sequence.computed, count) for sequence, count in pairs if count]
            budget -= sum(counts)
        return Step(tuple(segments), len(decodes), self.pool.collect_wiped()) if segments else None

    def complete(self, step: Step, failed: Collection[Sequence] = ()) -> None:
        """Note that a step has run; what ``failed`` is taken out, and nothing of it will be used again.

        To be called before the tokens that the step chose are appended, when drafts are what came true of them.
        """
        for segment in step.segments:
            sequence = segment.sequence
            if sequence in failed:
                self.pool.discard(sequence.blocks)
                self.remove(sequence)
                continue
            tokens = sequence.past(len(sequence.draft))
            sequence.computed = min(segment.end, len(tokens))
            if segment.end > len(tokens):
                self.pool.release(sequence.blocks, keep=blocks_for(len(tokens)))
            self.pool.publish(
                sequence.blocks, tokens, sequence.request.adapter, start=segment.start, end=sequence.computed
            )

    def reserve(self, sequences: Collection[Sequence], after: int, steps: int) -> int:
        """Give sequences that all decode blocks for ``steps`` tokens after the next ``after``, which have theirs.

        Nothing is preempted for it.

        Returns:
            For how many tokens there were blocks; for one, always, where ``after`` is 0.
        """
        while True:
            missing = [
                max(0, blocks_for(sequence.computed + after + steps) - len(sequence.blocks)) for sequence in sequences
            ]
            if sum(missing) <= self.pool.available:
                break
            steps -= 1
        for sequence, count in zip(sequences, missing, strict=True):
            sequence.blocks.extend(self.pool.take() for _ in range(count))
        return steps

    def check(self) -> None:
        """Assert that sequences and blocks are where they should be."""
        assert len(self.running) <= self.max_running
        for line in (self.running, self.waiting):
            assert line == sorted(line, key=_rank)
        for sequence in self.running:
            assert 0 <= sequence.computed < len(sequence.tokens)
            assert blocks_for(sequence.computed) <= len(sequence.blocks) <= blocks_for(len(sequence.tokens))
        assert not any(sequence.blocks or sequence.computed or sequence.state_slot >= 0 for sequence in self.waiting)
        held = [sequence.state_slot for sequence in self.running]
        assert sorted([*self._state_slots, *held]) == list(range(self.max_running))
        self.pool.check([sequence.blocks for sequence in self.running])

    def _grow(self) -> None:
        """Give each running sequence a block for its next token, at the cost of those behind it."""
        for sequence in list(self.running):
            while sequence.blocks and len(sequence.blocks) < blocks_for(len(sequence.tokens)):
                if self.pool.available:
                    sequence.blocks.append(self.pool.take())
                else:
                    self._preempt()

    def _draft(self, decodes: list[Sequence]) -> list[Sequence]:
        """Let sequences guess what is to come, as far as rows and blocks are left; return those that do."""
        rows = min(_DRAFT_ROWS, self.max_step_tokens) - len(decodes)
        drafted = []
        for sequence in decodes:
            if rows <= 0:
                break
            sequence.draft = sequence.propose(rows)
            if not sequence.draft:
                continue
            while self.pool.available and len(sequence.blocks) < blocks_for(len(sequence.tokens) + len(sequence.draft)):
                sequence.blocks.append(self.pool.take())
            del sequence.draft[len(sequence.blocks) * BLOCK_SIZE - len(sequence.tokens) :]
            if sequence.draft:
                drafted.append(sequence)
                rows -= len(sequence.draft)
        return drafted

    def _preempt(self) -> None:
        """Send the last in line back to waiting."""
        sequence = self.running.pop()
        self._free(sequence)
        sequence.computed = 0
        insort(self.waiting, sequence, key=_rank)

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        if sequence.state_slot >= 0:
            self._state_slots.append(sequence.state_slot)
            sequence.state_slot = -1

    def _admit(self, sequence: Sequence) -> bool:
        tokens, adapter = sequence.tokens, sequence.request.adapter
        found = self.pool.find((), 0, tokens, adapter)[: sequence.reusable // BLOCK_SIZE]
        needed = blocks_for(len(tokens)) - len(found)
        if not self._make_room(sequence, needed, found):
            return False
        for block in found:
            self.pool.share(block)
        sequence.blocks.extend([*found, *(self.pool.take() for _ in range(needed))])
        sequence.computed = len(found) * BLOCK_SIZE
        self.looked_up += len(tokens)
        sequence.found = sequence.computed
        self.found += sequence.found
        sequence.state_slot = self._state_slots.pop()
        self.waiting.pop(0)
        insort(self.running, sequence, key=_rank)
        return True

    def _make_room(self, sequence: Sequence, needed: int, found: list[int]) -> bool:
        """Say whether there is room, having preempted what is of larger priority if that makes it."""
        lesser = [other for other in self.running if other.request.priority > sequence.request.priority]
        kept = len(self.running) - len(lesser)
        gained = self.pool.held_only_by([other.blocks for other in lesser], found)
        # A block for each other running sequence is left, or they would soon take back what was given away here.
        if kept >= self.max_running or kept + needed + self.pool.idle_among(found) > self.pool.available + gained:
            return False
        while len(self.running) >= self.max_running or (
            len(self.running) + needed + self.pool.idle_among(found) > self.pool.available
        ):
            self._preempt()
        return True

    def _sorted(self) -> tuple[list[Sequence], list[Sequence]]:
        """Return those that decode and those that go on with their prompt, but for those that another one serves."""
        decodes, prompts, begun = [], [], set()
        for sequence in self.running:
            if sequence.pending > 1:
                self._reuse(sequence)
            if sequence.pending == 1:
                decodes.append(sequence)
                continue
            place = self._place(sequence)
            if place is None or place not in begun:
                prompts.append(sequence)
                begun.add(place)
        return decodes, prompts

    def _place(self, sequence: Sequence) -> object | None:
        done, rest = divmod(sequence.computed, BLOCK_SIZE)
        if rest:
            return None
        return self.pool.place(sequence.blocks, done, sequence.tokens, sequence.request.adapter)

    def _reuse(self, sequence: Sequence) -> None:
        """Take over what another sequence has computed in the meantime."""
        done, rest = divmod(sequence.computed, BLOCK_SIZE)
        if rest:
            return
        found = self.pool.find(sequence.blocks, done, sequence.tokens, sequence.request.adapter)
        found = found[: max(0, sequence.reusable // BLOCK_SIZE - done)]
        for index, block in enumerate(found, start=done):
            self.pool.replace(sequence.blocks, index, block)
        sequence.computed += len(found) * BLOCK_SIZE
        sequence.found += len(found) * BLOCK_SIZE
        self.found += len(found) * BLOCK_SIZE


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


def _fair(pending: list[int], budget: int) -> list[int]:
    """Divide a budget of tokens: an equal part to each, none too small, then the rest to those in front."""
    part = max(_LEAST_SHARE, budget // len(pending))
    counts = []
    for tokens in pending:
        counts.append(min(tokens, part, budget))
        budget -= counts[-1]
    for index, tokens in enumerate(pending):
        more = min(tokens - counts[index], budget)
        counts[index] += more
        budget -= more
    return counts
