"""Protects: load on a server is the load that was asked for, and an odd server is a typed error in bounded time."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import pytest

from tests.bench.conftest import AT_ONCE
from tuneserve.bench import Level, Load, Progress, Prompt, ServerTarget, Workload, measure
from tuneserve.client import ApiError, OpenAIClient, ProtocolError, TransportError
from tuneserve.errors import EngineError, InputError

Start = Callable[..., Any]
SMALL = Workload(concurrency=(3,), requests=7, prompt_tokens=5, new_tokens=6, runs=2)


@pytest.fixture
def target(start: Start) -> Iterator[Callable[..., tuple[ServerTarget, Any]]]:
    clients = []

    def make(odd: str | None = None, **options: Any) -> tuple[ServerTarget, Any]:
        server = start(odd)
        clients.append(OpenAIClient(server.url, timeout=20))
        return ServerTarget(clients[-1], **options), server

    yield make
    for client in clients:
        client.__exit__(None, None, None)


Make = Callable[..., tuple[ServerTarget, Any]]


def test_the_load_is_what_was_asked_for(target: Make) -> None:
    measured, server = target("all at once")
    results = list(measure(measured, SMALL))
    assert [(result.run, result.requests, result.tokens, result.failed) for result in results] == [
        (0, 7, 42, 0),
        (1, 7, 42, 0),
    ]
    # One to try it, three to warm it up, two runs.
    assert len(server.seen) == 1 + 3 + 14
    asked = [body for body in server.seen if body["max_tokens"] == 6]
    assert len(asked) == 14 and all(body["ignore_eos"] and body["temperature"] == 0 for body in asked)
    assert all(len(body["prompt"]) == 5 for body in asked)
    assert len({tuple(body["prompt"]) for body in asked}) == 14
    assert server.most_running == 3


def test_open_load_waits_for_nobody(target: Make) -> None:
    measured, server = target("holds all")
    load = replace(SMALL, rates=(1000.0,), requests=AT_ONCE, runs=1)
    (result,) = measure(measured, load)
    # The server answers none before all are there, which closed load with one at a time would never be.
    assert server.most_running == AT_ONCE
    assert (result.rate, result.concurrency, result.requests, result.failed) == (1000.0, None, AT_ONCE, 0)


def test_open_load_that_takes_too_long_is_left(target: Make) -> None:
    measured, _ = target(run_seconds=0.2)
    with pytest.raises(TransportError, match="did not answer 3 requests"):
        measured.run(
            Load(prompts=[Prompt([1])] * 3, new_tokens=2, concurrency=3, arrivals=(0.0, 0.01, 9.0)), lambda: None
        )


def test_a_late_request_counts_from_when_it_should_have_been_sent(target: Make) -> None:
    measured, _ = target()
    timed = measured.run(
        Load(prompts=[Prompt([1])] * 3, new_tokens=2, concurrency=3, arrivals=(0.0, 0.05, 0.1)), lambda: None
    )
    first = timed[0].sent
    assert [request.sent - first for request in timed] == pytest.approx([0.0, 0.05, 0.1])


def test_models_share_the_load_and_prompts_their_prefix(target: Make) -> None:
    measured, server = target(models=("a", "b"))
    (result,) = measure(measured, replace(SMALL, requests=8, shared_prefix=3, runs=1))
    asked = [body for body in server.seen if body["max_tokens"] == 6]
    assert sorted(body["model"] for body in asked) == ["a"] * 4 + ["b"] * 4
    assert len({tuple(body["prompt"][:3]) for body in asked}) == 1
    assert len({tuple(body["prompt"][3:]) for body in asked}) == 8
    assert (result.models, result.shared_prefix, result.about["model"]) == (2, 3, "a, b")


def test_arrivals_are_poisson_and_the_same_for_the_same_seed() -> None:
    workload = Workload(rates=(50.0,), requests=4000)
    times = [workload.loads(1000, ()).run(Level(None, 50.0)).arrivals for _ in range(2)]
    assert times[0] == times[1] and times[0] is not None
    gaps = [after - before for before, after in pairwise(times[0])]
    # Mean and standard deviation of an exponential distribution are equal.
    assert mean(gaps) == pytest.approx(0.02, rel=0.1) and stdev(gaps) == pytest.approx(0.02, rel=0.1)
    other = replace(workload, seed=1).loads(1000, ()).run(Level(None, 50.0)).arrivals
    assert other != times[0]


def test_progress_counts_the_requests_of_each_run(target: Make) -> None:
    measured, _ = target()
    seen: list[Progress] = []
    list(measure(measured, SMALL, seen.append))
    assert [(each.run, each.done) for each in seen] == [(run, done) for run in range(2) for done in range(8)]
    assert {each.requests for each in seen} == {7} and str(seen[0].level) == "3 at once"


def test_times_are_in_order(target: Make) -> None:
    measured, _ = target()
    for result in measure(measured, SMALL):
        assert 0 < result.first_token.p50 <= result.end_to_end.p50 <= result.end_to_end.p99
        assert result.inter_token is not None and result.inter_token.p50 <= result.inter_token.p90
        assert result.end_to_end.p99 <= 1e3 * result.seconds + 0.1
        assert result.tokens_per_second == pytest.approx(42 / result.seconds, rel=0.01)


@pytest.mark.parametrize("option", ["ignore_eos", "stream_options"])
def test_a_server_that_lacks_an_option_is_asked_without(target: Make, option: str) -> None:
    measured, server = target(option)
    (result, _) = measure(measured, SMALL)
    assert result.tokens == 42
    assert f"without {option}" in result.about
    assert len(measured.about) == 2 and option not in server.seen[-1]
    assert server.seen[-1].get("min_tokens") == (6 if option == "ignore_eos" else None)


def test_requests_that_fail_are_counted_and_not_timed(target: Make) -> None:
    measured, _ = target("fails at times")
    for result in measure(measured, SMALL):
        assert result.failed in (2, 3)
        assert result.tokens == 6 * (7 - result.failed)
        assert result.error is not None and "overloaded" in result.error


def test_a_run_of_which_nothing_is_answered_is_an_error(target: Make) -> None:
    measured, _ = target("fails later")
    with pytest.raises(EngineError, match=r"answered none of 7 requests: .*overloaded"):
        list(measure(measured, SMALL))


def test_a_server_that_does_not_end_is_left(target: Make) -> None:
    with pytest.raises(ProtocolError, match="more than the 2 tokens"):
        target("endless")


def test_a_server_that_only_keeps_the_connection_is_left(target: Make) -> None:
    measured, _ = target("only comments", run_seconds=0.3)
    with pytest.raises(TransportError, match=r"did not answer 3 requests in 0\.3 seconds"):
        list(measure(measured, SMALL))


def test_a_server_that_takes_no_such_request_is_an_api_error(target: Make) -> None:
    with pytest.raises(ApiError, match="prompt is unknown"):
        target("prompt")


def test_a_server_without_a_model_is_refused(target: Make) -> None:
    with pytest.raises(InputError, match="serves no model"):
        target("no model")


@pytest.mark.parametrize(
    "change",
    [{"concurrency": (0,)}, {"concurrency": (5000,)}, {"concurrency": (2, 2)}, {"concurrency": ()}, {"requests": 0},
     {"prompt_tokens": 0}, {"new_tokens": 10**9}, {"runs": 0}, {"rates": (0.0,)}, {"rates": (float("nan"),)},
     {"rates": (1.0, 1.0)}, {"rates": (5000.0,)}, {"rates": (1e9,)}, {"shared_prefix": 32}, {"shared_prefix": -1},
     {"first_token_target": 0.0}, {"inter_token_target": float("inf")}],
)  # fmt: skip
def test_a_workload_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"concurrency|requests|tokens|runs|rate|prefix|target"):
        Workload(**change).check()
