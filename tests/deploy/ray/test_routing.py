"""Protects: what begins alike meets on one replica, few move when replicas come and go, and none is overloaded."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tuneserve.deploy.ray._routing import BLOCK_TOKENS, LOAD_BOUND, ranked, route_key

NAMES = [f"replica-{index}" for index in range(8)]
KEYS = [route_key([index] * BLOCK_TOKENS, None, 4) for index in range(2000)]


def idle(names: list[str]) -> dict[str, int]:
    return dict.fromkeys(names, 0)


def test_only_adapter_and_first_blocks_decide() -> None:
    prompt = list(range(100))
    key = route_key(prompt, None, 4)
    assert key == route_key([*prompt[: 4 * BLOCK_TOKENS], 7, 7, 7], None, 4)
    assert key != route_key([9, *prompt[1:]], None, 4)
    assert key != route_key(prompt, "tuned", 4)
    assert route_key([1, 2], "tuned", 4) == route_key([3], "tuned", 4)
    assert route_key([1, 2], None, 4) is None


def test_without_load_a_key_has_one_replica_and_keys_are_spread() -> None:
    first = Counter(ranked(key, idle(NAMES))[0] for key in KEYS)
    # Binomial with mean 250 and deviation 15.
    assert all(180 < count < 320 for count in first.values())
    assert first.total() == len(KEYS)
    assert len(first) == len(NAMES)


def test_a_replica_that_goes_moves_its_own_keys_alone() -> None:
    for key in KEYS[:200]:
        before = ranked(key, idle(NAMES))
        for gone in NAMES:
            left = [name for name in NAMES if name != gone]
            assert ranked(key, idle(left)) == [name for name in before if name != gone]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.sampled_from(KEYS))
def test_a_loaded_replica_is_passed_over_and_still_asked_in_the_end(counts: list[int], key: bytes) -> None:
    loads = dict(zip(NAMES, counts, strict=False))
    order = ranked(key, loads)
    assert sorted(order) == sorted(loads)
    assert loads[order[0]] < LOAD_BOUND * (sum(counts) + 1) / len(counts) + 1


def test_one_hot_beginning_is_shared_out() -> None:
    loads = idle(NAMES)
    for _ in range(400):
        loads[ranked(KEYS[0], loads)[0]] += 1
    assert max(loads.values()) <= LOAD_BOUND * 400 / len(NAMES) + 1


def test_without_a_key_the_smallest_load_is_taken() -> None:
    assert ranked(None, {"a": 2, "b": 0, "c": 1}) == ["b", "c", "a"]
