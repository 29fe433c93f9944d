"""Protects ``tuneserve check``: what it prints, and the exit code that scripts rely on."""

import json
import socket
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from tuneserve.cli.check import check
from tuneserve.client import OpenAIClient
from tuneserve.client.checks import REACHABLE, CheckResult
from tuneserve.errors import InputError

URL = "http://127.0.0.1:9"
REACHED = CheckResult(REACHABLE, "pass", "it answers.", 3)
GOOD = CheckResult("chat", "pass", "it said [bold]hello[/bold].", 1200)
BAD = CheckResult("usage", "fail", "the answer has no usage.", 4)
LACKING = CheckResult("tools", "unsupported", "it is refused.", 5)
SKIPPED = CheckResult("stop", "skipped", "too short.", 6)

app = typer.Typer()
app.command()(check)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[CheckResult]:
    """Return the list of results that the command will be given."""
    results: list[CheckResult] = []

    def run(client: OpenAIClient, model: str | None = None) -> Iterator[CheckResult]:
        yield from results

    monkeypatch.setattr("tuneserve.client.checks.run_checks", run)
    return results


def test_all_that_is_required_passing_is_exit_code_0(found: list[CheckResult]) -> None:
    found += [REACHED, GOOD, LACKING, SKIPPED]
    result = CliRunner().invoke(app, [URL])
    assert result.exit_code == 0
    rows = result.stdout.splitlines()
    assert [row.split("  ")[0] for row in rows[:-1]] == ["pass", "pass", "not supported", "skipped"]
    assert rows[1].split() == ["pass", "chat", "1200", "ms", "it", "said", "[bold]hello[/bold]."]
    assert rows[-1] == "2 passed, 0 failed, 1 not supported, 1 skipped"


def test_a_failure_is_exit_code_1(found: list[CheckResult]) -> None:
    found += [REACHED, BAD]
    result = CliRunner().invoke(app, [URL])
    assert result.exit_code == 1
    assert "FAIL" in result.stdout


def test_json_has_every_result(found: list[CheckResult]) -> None:
    found += [REACHED, BAD]
    result = CliRunner().invoke(app, [URL + "/v1", "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["url"], report["passed"]) == (URL, False)
    assert report["checks"][1] == {
        "name": "usage", "outcome": "fail", "detail": "the answer has no usage.", "milliseconds": 4,
    }  # fmt: skip


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_nobody_there_is_exit_code_2(flags: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = CliRunner().invoke(app, [f"http://127.0.0.1:{port}", *flags])
    assert result.exit_code == 2
    assert "cannot be reached" in result.stdout


def test_what_is_no_url_is_bad_input() -> None:
    result = CliRunner().invoke(app, ["localhost:8000"])
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2


def test_the_key_and_the_model_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str | None, str | None]] = []

    def run(client: OpenAIClient, model: str | None = None) -> Iterator[CheckResult]:
        seen.append((client._connection._client.headers.get("authorization"), model))
        yield REACHED

    monkeypatch.setattr("tuneserve.client.checks.run_checks", run)
    CliRunner().invoke(app, [URL, "--model", "m", "--api-key", "sk-1"])
    CliRunner().invoke(app, [URL], env={"TUNESERVE_API_KEY": "sk-2"})
    assert seen == [("Bearer sk-1", "m"), ("Bearer sk-2", None)]
