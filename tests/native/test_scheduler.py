"""Protects: who goes first, how a step is shared, and that equal beginnings are computed once."""

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native._blocks import BLOCK_SIZE, BlockPool
from tuneserve.native._scheduler import Scheduler, Step
from tuneserve.native._sequence import Sequence


def scheduler(blocks: int = 1000, running: int = 8, budget: int = 512, reuse: bool = True) -> Scheduler:
    return Scheduler(BlockPool(blocks + 1, reuse=reuse), running, budget)


def sequence(prompt: list[int] | int, priority: int = 0, adapter: str | None = None) -> Sequence:
    ids = [next(FRESH)] * prompt if isinstance(prompt, int) else prompt
    params = SamplingParams()
    return Sequence(GenerationRequest(id="", prompt_ids=ids, params=params, priority=priority, adapter=adapter))


FRESH = iter(range(1000, 10**9))


def added(scheduler: Scheduler, *sequences: Sequence) -> list[Sequence]:
    for each in sequences:
        scheduler.add(each)
    return list(sequences)


def advance(scheduler: Scheduler, failed: tuple[Sequence, ...] = ()) -> Step:
    """Run a step whose tokens are all 7."""
    step = scheduler.schedule()
    assert step
    scheduler.complete(step, failed)
    for segment in step.segments:
        if segment.sequence not in failed and segment.end == len(segment.sequence.tokens):
            segment.sequence.tokens.append(7)
    scheduler.check()
    return step


def shares(step: Step) -> dict[Sequence, int]:
    return {segment.sequence: segment.count for segment in step.segments}


def test_a_short_prompt_does_not_wait_for_a_long_one_nor_a_stream_for_either() -> None:
    queue = scheduler()
    (stream,) = added(queue, sequence(1))
    advance(queue)
    long, short = added(queue, sequence(5000), sequence(10))
    assert shares(advance(queue)) == {stream: 1, long: 501, short: 10}
    assert shares(advance(queue)) == {stream: 1, short: 1, long: 510}


def test_many_long_prompts_share_a_step_in_parts_that_are_worth_it() -> None:
    queue = scheduler(running=64)
    prompts = added(queue, *(sequence(300) for _ in range(40)))
    first = shares(advance(queue))
    assert list(first) == prompts[:8]
    assert set(first.values()) == {64}
    two = scheduler()
    assert list(shares((added(two, sequence(900), sequence(900)), advance(two))[1]).values()) == [256, 256]


def test_smaller_priority_gets_the_step_first() -> None:
    queue = scheduler()
    usual, urgent = added(queue, sequence(600), sequence(500, priority=-1))
    assert shares(advance(queue)) == {urgent: 500, usual: 12}


def test_equal_priority_is_first_come_first_served_though_a_later_one_would_fit() -> None:
    queue = scheduler(blocks=10)
    first, second, third = added(queue, sequence(80), sequence(150), sequence(1))
    assert list(shares(advance(queue))) == [first]
    queue.remove(first)
    assert list(shares(advance(queue))) == [second]
    queue.remove(second)
    assert list(shares(advance(queue))) == [third]


def test_an_urgent_request_takes_the_place_of_the_youngest_lesser_one() -> None:
    for queue in (scheduler(running=2), scheduler(blocks=8)):
        older, younger = added(queue, sequence(40, priority=1), sequence(40, priority=1))
        for _ in range(3):
            advance(queue)
        kept = list(younger.tokens)
        (urgent,) = added(queue, sequence(40))
        assert list(shares(advance(queue))) == [older, urgent]
        assert queue.waiting == [younger]
        assert younger.tokens == kept and not younger.blocks
        queue.remove(urgent)
        assert younger in shares(advance(queue))


def test_nobody_is_preempted_for_a_request_that_would_not_fit_even_then() -> None:
    queue = scheduler(blocks=10)
    big, small = added(queue, sequence(96), sequence(20, priority=1))
    advance(queue)
    added(queue, sequence(96))
    assert shares(advance(queue)) == {big: 1, small: 1}


def test_the_youngest_gives_way_when_decoding_outgrows_the_cache() -> None:
    queue = scheduler(blocks=6)
    first, second = added(queue, sequence(2 * BLOCK_SIZE), sequence(2 * BLOCK_SIZE - 1))
    while second in shares(advance(queue)):
        pass
    # The first one took the last block, then the one that the other needed.
    assert len(first.tokens) > 3 * BLOCK_SIZE and len(second.tokens) >= 3 * BLOCK_SIZE and not second.blocks
    queue.remove(first)
    # What it had computed is still there, all but the last token.
    assert shares(advance(queue))[second] <= BLOCK_SIZE


def test_a_beginning_seen_before_is_not_computed_again_but_for_the_last_token() -> None:
    queue = scheduler()
    prompt = list(range(4 * BLOCK_SIZE))
    expected = (
        (prompt, 64), (prompt, 16), ([*prompt, 1], 1), (prompt[:40], 8), ([9, *prompt[1:]], 64),
        ([*prompt[:16], *prompt], 64),
    )  # fmt: skip
    for ids, computed in expected:
        (one,) = added(queue, sequence(ids))
        assert shares(advance(queue)) == {one: computed}
        queue.remove(one)
    assert queue.looked_up == 64 + 64 + 65 + 40 + 64 + 80
    assert queue.found == 0 + 48 + 64 + 32 + 0 + 16


def test_an_answer_is_a_beginning_too() -> None:
    queue = scheduler()
    (one,) = added(queue, sequence([1] * 20))
    while one.generated < 30:
        advance(queue)
    conversation = [*one.tokens, 5, 5]
    queue.remove(one)
    (two,) = added(queue, sequence(conversation))
    assert shares(advance(queue)) == {two: 52 - 3 * BLOCK_SIZE}


def test_adapters_do_not_share_what_differs() -> None:
    queue = scheduler()
    base, other, same = added(
        queue, sequence([1] * 33), sequence([1] * 33, adapter="a"), sequence([1] * 33, adapter="a")
    )
    assert shares(advance(queue)) == {base: 33, other: 33}
    assert shares(advance(queue)) == {base: 1, other: 1, same: 1}


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    prompt = [index % 50 for index in range(1000)]
    queue = scheduler()
    samples = added(queue, *(sequence(prompt) for _ in range(4)))
    computed = 0
    while not all(each.generated for each in samples):
        computed += sum(shares(advance(queue)).values())
    # The others wait for full blocks, and compute only what is left of the prompt after these.
    assert computed <= 1000 + 3 * (1000 % BLOCK_SIZE) + len(samples) * 2


def test_without_reuse_everything_is_computed() -> None:
    queue = scheduler(reuse=False)
    one, two = added(queue, sequence([1] * 100), sequence([1] * 100))
    assert shares(advance(queue)) == {one: 100, two: 100}


def test_the_least_recently_used_beginning_goes_first_and_from_its_end() -> None:
    queue = scheduler(blocks=12)
    prompts = [[number] * 65 for number in (1, 2)]
    for ids in (prompts[0], prompts[1], prompts[0][:17]):
        (one,) = added(queue, sequence(ids))
        advance(queue)
        queue.remove(one)
    # Eight blocks are kept, four free; this one takes two of them from the first prompt's end.
    (big,) = added(queue, sequence(6 * BLOCK_SIZE))
    advance(queue)
    queue.remove(big)
    assert [len(queue.pool.find((), 0, ids, None)) for ids in prompts] == [2, 4]


def test_what_failed_is_not_found_again_and_is_wiped_once_nobody_holds_it() -> None:
    queue = scheduler()
    prompt = list(range(40))
    (healthy,) = added(queue, sequence(prompt))
    advance(queue)
    (another,) = added(queue, sequence([*prompt, 2]))
    advance(queue)
    (failing,) = added(queue, sequence([*prompt, 1]))
    shared = set(healthy.blocks[:2])
    step = queue.schedule()
    assert step and shared < set(failing.blocks)
    own = set(failing.blocks) - shared
    queue.complete(step, [failing])
    healthy.tokens.append(7)
    another.tokens.append(7)
    queue.check()
    assert not queue.pool.find((), 0, prompt, None)
    again = queue.schedule()
    assert again and set(again.wiped) == own
    queue.complete(again)
    queue.remove(healthy)
    queue.remove(another)
    added(queue, sequence(1))
    last = queue.schedule()
    assert last and set(last.wiped) >= shared


def test_a_block_is_left_for_each_that_runs() -> None:
    for blocks, fits in ((7, True), (8, False)):
        queue = scheduler(blocks=10)
        (stream,) = added(queue, sequence(20))
        advance(queue)
        (late,) = added(queue, sequence(blocks * BLOCK_SIZE))
        # Two of the ten are the stream's.
        assert (late in shares(advance(queue))) == fits
        assert queue.running[0] is stream


def test_what_is_found_in_the_cache_takes_its_place_there_too() -> None:
    queue = scheduler(blocks=5)
    prompt = list(range(2 * BLOCK_SIZE))
    (first,) = added(queue, sequence([*prompt, 1]))
    advance(queue)
    queue.remove(first)
    (stream,) = added(queue, sequence(1))
    advance(queue)
    # Of the four blocks that are not the stream's two are found, and the other two taken: none would be left for it.
    (urgent,) = added(queue, sequence([*prompt, *range(100, 132)], priority=-1))
    advance(queue)
    assert queue.running == [urgent] and queue.waiting == [stream]
    assert urgent.found == 2 * BLOCK_SIZE
