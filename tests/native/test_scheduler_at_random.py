"""Protects: whatever happens to requests in whatever order, each one still running gets the tokens it would get alone.

The model is simulated. What it stores for a token stands for the whole history of that token, so a block that was given
away too early, shared with the wrong sequence or not wiped is seen as soon as it is read. So is a state in a slot that
is not that of the token before.
"""

import zlib
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native._blocks import BLOCK_SIZE, BlockPool
from tuneserve.native._draft import Drafter
from tuneserve.native._scheduler import Scheduler, Segment, Step
from tuneserve.native._sequence import Sequence

POISON = -1
VOCABULARY = 5


def histories(adapter: str | None, tokens: list[int]) -> list[int]:
    """Return for each token a number that depends on it and on all before it."""
    history, found = zlib.crc32(repr(adapter).encode()), []
    for token in tokens:
        history = zlib.crc32(bytes([token]), history)
        found.append(history)
    return found


def next_token(history: int, random: Random) -> int:
    return (history + int(random.random() * VOCABULARY)) % VOCABULARY


def alone(request: GenerationRequest) -> list[int]:
    """Return the tokens of a request without any scheduler."""
    tokens, random = list(request.prompt_ids), Random(str(request.params.seed))
    assert request.params.max_tokens
    for _ in range(request.params.max_tokens):
        tokens.append(next_token(histories(request.adapter, tokens)[-1], random))
    return tokens[len(request.prompt_ids) :]


class Guesser(Drafter):
    """Guesses the tokens to come, some of them wrong."""

    def __init__(self, request: GenerationRequest) -> None:
        super().__init__([], 1, 1)
        self.tokens = request.prompt_ids + alone(request)

    def propose(self, tokens: list[int], most: int) -> list[int]:
        true = self.tokens[len(tokens) : len(self.tokens) - 1][: min(most, len(tokens) % 20)]
        return [(token + (place * len(tokens) % 7 == 5)) % VOCABULARY for place, token in enumerate(true, 1)]


class Engine(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(3, 12),
        running=st.integers(1, 5),
        budget=st.integers(5, 90),
        kind=st.sampled_from(["reuses", "reuses", "does not", "carries a state"]),
    )
    def start(self, blocks: int, running: int, budget: int, kind: str) -> None:
        self.pool = BlockPool(blocks, reuse=kind == "reuses")
        self.carries = kind == "carries a state"
        self.states = [POISON] * running
        self.scheduler = Scheduler(self.pool, running, budget)
        self.context = (blocks - 1) * BLOCK_SIZE
        self.memory: dict[int, list[int]] = {block: [0] * BLOCK_SIZE for block in range(blocks)}
        self.alive: dict[str, Sequence] = {}
        self.past: list[tuple[str | None, list[int]]] = []
        self.added = 0

    @rule(
        beginning=st.sampled_from([(0, 0), (0, 1), (1, 1)]),
        lengths=st.tuples(st.integers(0, 40), st.integers(0, 40)),
        length=st.integers(1, 20),
        new=st.integers(1, 40),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        adapter=st.sampled_from([None, None, "x"]),
    )
    def add(
        self, beginning: tuple[int, int], lengths: tuple[int, int], length: int, new: int, priority: int, adapter: Any
    ) -> None:
        first, second = beginning
        self.queue([first] * lengths[0] + [second] * lengths[1] + [2] * length, new, priority, adapter)

    @precondition(lambda self: self.past)
    @rule(data=st.data(), cut=st.integers(0, 20), new=st.integers(1, 40))
    def go_on(self, data: st.DataObject, cut: int, new: int) -> None:
        """Ask for what follows an earlier answer, or most of it."""
        adapter, tokens = data.draw(st.sampled_from(self.past))
        self.queue(tokens[: max(1, len(tokens) - cut)], new, 0, adapter)

    def queue(self, prompt: list[int], new: int, priority: int, adapter: str | None) -> None:
        prompt = prompt[: self.context - 1]
        params = SamplingParams(max_tokens=min(new, self.context - len(prompt)), seed=self.added)
        request = GenerationRequest(
            id=str(self.added), prompt_ids=prompt, params=params, priority=priority, adapter=adapter
        )
        self.added += 1
        sequence = self.alive[request.id] = Sequence(request)
        sequence.drafter = Guesser(request) if self.added % 3 and not self.carries else None
        self.scheduler.add(self.alive[request.id])

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = self.alive.pop(data.draw(st.sampled_from(sorted(self.alive))))
        self.scheduler.remove(sequence)
        assert not sequence.blocks and sequence.state_slot == -1

    @rule(fails=st.sampled_from([False] * 9 + [True]), data=st.data())
    def step(self, fails: bool, data: st.DataObject) -> None:
        step = self.scheduler.schedule()
        assert (step is None) == (not self.alive)
        if step is None:
            return
        for block in step.wiped:
            self.memory[block] = [0] * BLOCK_SIZE
        assert sum(segment.count for segment in step.segments) <= self.scheduler.max_step_tokens
        served = [segment.sequence for segment in step.segments]
        assert min(self.alive.values(), key=lambda sequence: sequence.rank) in served
        decoding = [sequence for sequence in self.scheduler.running if sequence.pending == 1]
        plain = [sequence for sequence in decoding if not sequence.draft]
        guessing = [sequence for sequence in decoding if sequence.draft]
        assert served[: len(decoding)] == plain + guessing
        assert step.decodes == len(plain)
        failed = [data.draw(st.sampled_from(served))] if fails else []
        for segment in step.segments:
            assert not any(POISON in self.memory[block] for block in segment.sequence.blocks)
        for segment in step.segments:
            self.compute(segment, segment.sequence in failed)
        held = [(sequence, set(sequence.blocks)) for sequence in failed]
        chosen = self.choose(step, failed)
        self.scheduler.complete(step, failed)
        for sequence, blocks in held:
            del self.alive[sequence.request.id]
            # Another sequence may have computed the same beginning in the same step, in a block of its own.
            assert blocks.isdisjoint(self.pool.find((), 0, sequence.tokens, sequence.request.adapter))
        for sequence, tokens in chosen.items():
            self.take(sequence, tokens)

    def compute(self, segment: Segment, fails: bool) -> None:
        sequence = segment.sequence
        others = {block for other in self.scheduler.running if other is not sequence for block in other.blocks}
        numbers = histories(sequence.request.adapter, sequence.past(len(sequence.draft)))
        if self.carries:
            assert segment.start == 0 or self.states[sequence.state_slot] == numbers[segment.start - 1]
            self.states[sequence.state_slot] = POISON if fails else numbers[segment.end - 1]
        for position in range(segment.end):
            block, offset = sequence.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE
            if position < segment.start:
                assert self.memory[block][offset] == numbers[position]
            else:
                assert block not in others
                self.memory[block][offset] = POISON if fails else numbers[position]

    def choose(self, step: Step, failed: list[Sequence]) -> dict[Sequence, list[int]]:
        """Choose tokens as long as drafts come true."""
        chosen = {}
        for sequence in [segment.sequence for segment in step.segments if segment.samples]:
            if sequence not in failed:
                tokens: list[int] = []
                while len(tokens) <= len(sequence.draft) and tokens == sequence.draft[: len(tokens)]:
                    history = histories(sequence.request.adapter, sequence.past(len(tokens)))[-1]
                    tokens.append(next_token(history, sequence.random))
                sequence.settle(len(tokens) - 1)
                chosen[sequence] = tokens
        return chosen

    def take(self, sequence: Sequence, tokens: list[int]) -> None:
        sequence.draft.clear()
        for token in tokens:
            sequence.append(token)
        if sequence.generated == sequence.request.params.max_tokens:
            assert sequence.tokens[len(sequence.request.prompt_ids) :] == alone(sequence.request)
            self.scheduler.remove(self.alive.pop(sequence.request.id))
            self.past = [*self.past[-3:], (sequence.request.adapter, sequence.tokens)]

    @invariant()
    def is_whole(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert {*running, *waiting} == {*self.alive.values()} and len(running) + len(waiting) == len(self.alive)
        for sequence in waiting:
            assert not any(
                other.request.priority == sequence.request.priority and other.arrival > sequence.arrival
                for other in running
            )
        self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        steps = 0
        while self.alive:
            steps += 1
            assert steps < 10_000
            step = self.scheduler.schedule()
            assert step
            for block in step.wiped:
                self.memory[block] = [0] * BLOCK_SIZE
            for segment in step.segments:
                self.compute(segment, fails=False)
            chosen = self.choose(step, [])
            self.scheduler.complete(step)
            for sequence, tokens in chosen.items():
                self.take(sequence, tokens)
            self.scheduler.check()
        assert self.pool.available == self.pool.blocks - 1


Engine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRandomOperations = Engine.TestCase
