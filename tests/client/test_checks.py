"""Protects the checker: a server that is right passes everything, and each fault fails exactly its own check."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve.client import OpenAIClient
from tuneserve.client.checks import REACHABLE, CheckResult, run_checks

Serve = Callable[..., Any]
# The JavaScript checker has these checks alone, and its tests read the same file.
NAMES = json.loads((Path(__file__).parents[2] / "clients" / "js" / "test" / "names.json").read_text())
FAULTS = [
    ("models html", "models list"),
    ("any model", "unknown model"),
    ("unknown model 400", "unknown model"),
    ("unknown model bare", "unknown model"),
    ("chat role", "chat"),
    ("chat odd reason", "chat"),
    ("stream no choices", "chat streaming"),
    ("stream no role", "chat streaming"),
    ("stream no done", "chat streaming"),
    ("stream no reason", "chat streaming"),
    ("stream odd reason", "chat streaming"),
    ("stream two reasons", "chat streaming"),
    ("stream goes on", "chat streaming"),
    ("stream new ids", "chat streaming"),
    ("stream without end", "chat streaming"),
    ("stream lost", "chat streaming"),
    ("stream plain text", "chat streaming"),
    ("stream error", "chat streaming"),
    ("usage stream missing", "streaming usage"),
    ("usage stream wrong", "streaming usage"),
    ("usage stream choices", "streaming usage"),
    ("usage stream no done", "streaming usage"),
    ("usage missing", "usage"),
    ("usage wrong", "usage"),
    ("max_tokens ignored", "max_tokens"),
    ("max_tokens reason", "max_tokens"),
    ("stop ignored", "stop"),
    ("stop included", "stop"),
    ("stop early", "stop"),
    ("stop reason", "stop"),
    ("seed ignored", "seed"),
    ("temperature ignored", "temperature 0"),
    ("completions empty", "completions"),
    ("completions odd reason", "completions"),
    ("completion stream empty", "completions streaming"),
    ("completion stream no done", "completions streaming"),
    ("completion stream no reason", "completions streaming"),
    ("completion stream new ids", "completions streaming"),
    ("one at a time", "concurrent requests"),
    ("crowd silent", "concurrent requests"),
    ("same ids", "concurrent requests"),
    ("json 422", "invalid JSON"),
    ("value 422", "invalid value"),
    ("cold accepted", "invalid value"),
    ("errors bare", "error form"),
    ("errors without code", "error form"),
    ("errors with a wrong message", "error form"),
    ("errors with a wrong type", "error form"),
    ("errors with a wrong param", "error form"),
    ("errors with a wrong code", "error form"),
    ("n ignored", "n"),
    ("n broken", "n"),
    ("logprobs ignored", "logprobs"),
    ("logprobs positive", "logprobs"),
    ("logprobs alone", "logprobs"),
    ("tools ignored", "tools"),
    ("tools other", "tools"),
    ("tools broken arguments", "tools"),
    ("response_format ignored", "json_schema"),
    ("response_format extra", "json_schema"),
    ("response_format broken", "json_schema"),
    ("health broken", "health"),
]


def check(server: Any, model: str | None = None) -> list[CheckResult]:
    with OpenAIClient(server.url, timeout=20) as client:
        # What the JavaScript checker has too; the rest is held against the gateway.
        return [result for result in run_checks(client, model) if result.name in NAMES]


def outcomes(results: list[CheckResult], outcome: str) -> list[str]:
    return [result.name for result in results if result.outcome == outcome]


def test_a_server_that_is_right_passes_every_check(fake_server: Serve) -> None:
    results = check(fake_server())
    assert [(result.name, result.outcome) for result in results] == [(name, "pass") for name in NAMES]
    assert all(result.detail.endswith(".") and result.milliseconds >= 0 for result in results)


def test_every_check_is_shown_to_fail() -> None:
    assert {name for _, name in FAULTS} == set(NAMES) - {REACHABLE}


@pytest.mark.parametrize(("fault", "name"), FAULTS)
def test_a_fault_fails_its_check_and_no_other(fake_server: Serve, fault: str, name: str) -> None:
    model = "fake-1" if name == "models list" else None
    results = check(fake_server(fault), model)
    assert outcomes(results, "fail") == [name]
    assert outcomes(results, "pass") == [each for each in NAMES if each != name]


@pytest.mark.parametrize(
    ("faults", "name", "detail"),
    [
        (["chat silent"], "chat", "the message has no text."),
        (["stream no choices"], "chat streaming", "the stream has no chunk with a choice."),
        (["stream goes on"], "chat streaming", "the stream goes on after its finish_reason."),
        (["stream without end"], "chat streaming", "the stream goes on after 10000 chunks."),
        (["usage stream missing"], "streaming usage", "the last chunk has no usage."),
        (["stop included"], "stop", "the answer contains the stop string ' one'."),
        (
            ["json accepted", "cold accepted"],
            "error form",
            "neither broken JSON nor temperature -1 is answered with an error.",
        ),
    ],
)
def test_a_failure_says_what_was_found(fake_server: Serve, faults: list[str], name: str, detail: str) -> None:
    found = {result.name: result.detail for result in check(fake_server(*faults)) if result.outcome == "fail"}
    assert found[name] == detail


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("n refused", "n"),
        ("logprobs refused", "logprobs"),
        ("tools refused", "tools"),
        ("response_format refused", "json_schema"),
        ("health missing", "health"),
    ],
)
def test_an_optional_feature_may_be_refused(fake_server: Serve, fault: str, name: str) -> None:
    results = check(fake_server(fault))
    assert outcomes(results, "unsupported") == [name]
    assert not outcomes(results, "fail")


def test_missing_completions_fail_both_of_their_checks(fake_server: Serve) -> None:
    failed = outcomes(check(fake_server("completions missing")), "fail")
    assert failed == ["completions", "completions streaming"]


def test_another_object_than_a_chat_completion_fails_with_its_name(fake_server: Serve) -> None:
    results = {result.name: result for result in check(fake_server("chat object"))}
    assert results["chat"].outcome == "fail"
    assert "'chat.reply'" in results["chat"].detail


def test_a_model_of_few_words_skips_what_it_cannot_show(fake_server: Serve) -> None:
    results = check(fake_server("short model"))
    assert outcomes(results, "skipped") == ["max_tokens"]
    assert not outcomes(results, "fail")


@pytest.mark.parametrize("fault", ["models empty", "models locked"])
def test_without_a_model_the_rest_is_skipped(fake_server: Serve, fault: str) -> None:
    results = check(fake_server(fault))
    assert outcomes(results, "fail") == ["models list"]
    assert outcomes(results, "skipped") == NAMES[2:]


def test_an_unreachable_server_ends_it(fake_server: Serve) -> None:
    server = fake_server()
    server.server_close()
    (result,) = check(server)
    assert (result.name, result.outcome) == (REACHABLE, "fail")
    assert "cannot be reached" in result.detail
