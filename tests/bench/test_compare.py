"""Protects: percentiles and goodput are right, results survive a file, and noise is not called a change."""

from io import BytesIO
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from tuneserve.bench import Level, RunResult, Timed, Workload, compare, read_results, summarise, write_result
from tuneserve.errors import InputError


def result(speed: float, run: int = 0, concurrency: int = 4) -> RunResult:
    timed = [Timed(0.0, (0.1, 0.1 + 1 / speed, 0.1 + 2 / speed), 3)] * concurrency
    workload = Workload(prompt_tokens=3, new_tokens=3, first_token_target=200, inter_token_target=1e3 / 110)
    return summarise(timed, workload, Level(concurrency, None), run, target="x", about={"model": "m"})


def test_percentiles_are_those_of_numpy() -> None:
    random = Random(0)
    sent = [random.random() for _ in range(57)]
    timed = [Timed(start, (start + random.random(), start + 1 + random.random()), 2) for start in sent]
    made = summarise(timed, Workload(), Level(57, None), 0, target="x", about={})
    first = [1e3 * (request.pieces[0] - request.sent) for request in timed]
    gaps = [1e3 * (request.pieces[1] - request.pieces[0]) for request in timed]
    for found, values in ((made.first_token, first), (made.inter_token, gaps)):
        assert found is not None
        assert [found.p50, found.p90, found.p99] == pytest.approx(np.percentile(values, [50, 90, 99]), abs=1e-3)
    assert made.tokens == 114
    assert made.seconds == pytest.approx(max(request.pieces[-1] for request in timed) - min(sent), abs=1e-4)


def test_an_answer_in_one_piece_has_no_times_between_tokens() -> None:
    made = summarise([Timed(0, (1.0,), 5)], Workload(), Level(1, None), 0, target="x", about={})
    assert made.inter_token is None and made.tokens == 5


def test_results_survive_a_file(tmp_path: Path) -> None:
    results, file = [result(10, run) for run in range(3)], BytesIO()
    for each in results:
        write_result(file, each)
    path = tmp_path / "results.jsonl"
    path.write_bytes(file.getvalue())
    assert read_results(path) == results


@pytest.mark.parametrize(
    "text", [b"", b"\n\n", b"{}", b"nonsense", b"[" * 5000, b'{"target": NaN}', b"\xff\xfe", b'{"unknown": 1}']
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(text)
    with pytest.raises(InputError, match="name a file that --out wrote"):
        read_results(path)
    with pytest.raises(InputError, match="name a file that --out wrote"):
        read_results(tmp_path / "missing")


def test_what_got_faster_is_said_to_be() -> None:
    before = [result(100 + run, run) for run in range(4)]
    after = [result(120 + run, run) for run in range(4)]
    changes = {change.metric: change for change in compare(before, after)}
    speed = changes["tokens/s"]
    assert speed.beyond_noise and speed.better and speed.after > speed.before
    assert changes["inter-token p50, ms"].beyond_noise and changes["inter-token p50, ms"].better
    assert not changes["first token p50, ms"].beyond_noise
    back = {change.metric: change for change in compare(after, before)}
    assert back["tokens/s"].beyond_noise and not back["tokens/s"].better


def test_equal_sides_are_rarely_called_different() -> None:
    random, called, rounds = Random(1), 0, 1000
    for _ in range(rounds):
        sides = [[result(random.gauss(100, 5), run) for run in range(5)] for _ in range(2)]
        (speed,) = [change for change in compare(*sides) if change.metric == "tokens/s"]
        assert speed.odds == pytest.approx(2 / 252)
        called += speed.beyond_noise
    # The expectation is 8, its standard deviation 3.
    assert called < 20


def test_levels_that_only_one_side_has_are_left_out_and_none_in_common_is_refused() -> None:
    many = [result(10, run, 4) for run in range(4)]
    assert {change.concurrency for change in compare([*many, result(5, 0, 8)], many)} == {4}
    with pytest.raises(InputError, match="no level in common"):
        compare(many, [msgspec.structs.replace(each, new_tokens=9) for each in many])


def test_too_few_runs_are_refused() -> None:
    few = [result(10, run) for run in range(3)]
    with pytest.raises(InputError, match="too few"):
        compare(few, few)


def test_goodput_counts_the_requests_that_keep_to_both_targets() -> None:
    def answer(first: float, between: float) -> Timed:
        return Timed(1.0, tuple(1.0 + first + between * index for index in range(5)), 5)

    # A pause in an answer is forgiven where the others make up for it.
    uneven = Timed(1.0, (1.1, 1.15, 1.16, 1.17, 1.18), 5)
    timed = [answer(0.1, 0.02), answer(0.3, 0.02), answer(0.1, 0.04), uneven, Timed(1.0, (), 0, "failed")]
    workload = Workload(first_token_target=200, inter_token_target=30)
    made = summarise(timed, workload, Level(None, 2.0), 0, target="x", about={})
    assert made.good == 2 and made.goodput == pytest.approx(2 / made.seconds, abs=1e-3)
    only_first = summarise(timed, Workload(first_token_target=200), Level(4, None), 0, target="x", about={})
    assert only_first.good == 3
    assert summarise(timed, Workload(), Level(4, None), 0, target="x", about={}).goodput is None


def test_goodput_under_other_targets_is_not_compared() -> None:
    sides = [[result(100, run) for run in range(4)] for _ in range(2)]
    assert "goodput, requests/s" in {change.metric for change in compare(*sides)}
    sides[1] = [msgspec.structs.replace(each, first_token_target=7.0) for each in sides[1]]
    assert "goodput, requests/s" not in {change.metric for change in compare(*sides)}
