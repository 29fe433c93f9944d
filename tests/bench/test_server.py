"""Protects: load on a server is the load that was asked for, and an odd server is a typed error in bounded time."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tuneserve.bench import ServerTarget, Workload, measure
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
    measured, server = target()
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
     {"prompt_tokens": 0}, {"new_tokens": 10**9}, {"runs": 0}],
)  # fmt: skip
def test_a_workload_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"concurrency|requests|tokens|runs"):
        Workload(**change).check()
