"""Protects: no sequence is lost or left waiting, and every slot holds what the scheduler says it holds."""

from hypothesis import given
from hypothesis import strategies as st

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native._scheduler import Scheduler
from tuneserve.native._sequence import Sequence


@given(st.data(), st.integers(1, 5), st.integers(5, 12))
def test_random_operations_keep_slots_and_cache_together(data: st.DataObject, slots: int, budget: int) -> None:
    scheduler = Scheduler(slots, budget)
    cache: dict[int, list[tuple[Sequence, int]]] = {slot: [] for slot in range(slots)}
    alive: list[Sequence] = []
    for number in range(data.draw(st.integers(1, 30))):
        operation = data.draw(st.sampled_from(["add", "step", "step", "remove"]))
        if operation == "add":
            prompt = [0] * data.draw(st.integers(1, 20))
            request = GenerationRequest(id=str(number), prompt_ids=prompt, params=SamplingParams())
            alive.append(Sequence(request))
            scheduler.add(alive[-1])
        elif operation == "remove" and alive:
            sequence = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            for move in scheduler.remove(sequence):
                cache[move.target][: move.length] = cache[move.source][: move.length]
        elif operation == "step":
            step = scheduler.schedule()
            assert (step is None) == (not alive)
            if step is None:
                continue
            assert sum(segment.count for segment in step.segments) <= budget
            assert [segment.slot for segment in step.segments[: step.decodes]] == list(range(step.decodes))
            for segment in step.segments:
                sequence = segment.sequence
                row = cache[segment.slot]
                del row[segment.start :]
                assert [entry == (sequence, index) for index, entry in enumerate(row)] == [True] * segment.start
                row += [(sequence, index) for index in range(segment.start, segment.start + segment.count)]
                sequence.computed += segment.count
                if sequence.pending == 0:
                    sequence.tokens.append(0)
    assert len(scheduler.running) + len(scheduler.waiting) == len(alive)
    assert len(scheduler.running) <= slots
