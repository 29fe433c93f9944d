"""Protects ``tuneserve bench``: a source and a server can be measured, kept, and compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tuneserve.bench import read_results
from tuneserve.cli.bench import bench
from tuneserve.errors import TuneserveError

app = typer.Typer()
app.command()(bench)
LOAD = ("--concurrency", "1,3", "--prompt-tokens", "4", "--new-tokens", "5", "--runs", "4")


@pytest.fixture
def model(make_llama: Callable[..., Path]) -> Path:
    directory = make_llama()
    (directory / "tokenizer.json").write_text("{}")
    return directory


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_source_is_measured_kept_and_compared(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "before.jsonl"
    text = run(model, *LOAD, "--out", out)
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["1", "3"]
    results = read_results(out)
    assert [(each.concurrency, each.run, each.tokens) for each in results] == [
        *((1, run, 5) for run in range(4)),
        *((3, run, 15) for run in range(4)),
    ]
    assert results[0].about["engine"] == "native"
    found: dict[str, Any] = json.loads(run(model, *LOAD, "--against", out, "--json"))
    assert len(found["results"]) == 8
    assert {change["concurrency"] for change in found["changes"]} == {1, 3}
    compared = run(model, *LOAD, "--against", out)
    assert sum("tokens/s" in line for line in compared.splitlines()) == 2


def test_a_run_that_fails_leaves_no_empty_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for path in (out, tmp_path / "missing" / "out.jsonl"):
        with pytest.raises(TuneserveError):
            run(tmp_path / "nowhere", *LOAD, "--out", path)
    assert list(tmp_path.iterdir()) == []


def test_open_load_over_adapters_becomes_a_page(model: Path, make_lora: Callable[..., Path], tmp_path: Path) -> None:
    page = tmp_path / "load.html"
    adapters = [option for name in "ab" for option in ("--adapter", f"{name}={make_lora(model, name)}")]
    text = run(
        model, *adapters, "--rate", "200,400", "--requests", "4", "--prompt-tokens", "8", "--new-tokens", "3",
        "--shared-prefix", "4", "--ttft-target", "60000", "--runs", "1", "--html", page,
    )  # fmt: skip
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["200", "400"]
    assert "within targets" in text
    shown = page.read_text()
    assert "200 per second" in shown and "adapters a, b" in shown and "target, 60000 ms" in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--concurrency", "1,x"), "give whole numbers"),
        (("--concurrency", ""), "give whole numbers"),
        (("--concurrency", "0"), "choose from 1"),
        (("--concurrency", "9" * 30), "choose from 1"),
        (("--new-tokens", "0"), "choose from 1"),
        (("--new-tokens", "1000"), "the model has 128"),
        (("--against", "missing.jsonl"), "cannot be read"),
        (("--out", "."), "already"),
        (("--html", "."), "already"),
        (("--html", "no/such/directory.html"), "no directory"),
        (("--rate", "1", "--prompt-tokens", "4"), "give one of them"),
        (("--model", "x"), "is for a server"),
        (("--shared-prefix", "32"), "choose from 0 to 31"),
        (("--ttft-target", "0"), "above 0"),
        (("--adapter", "nonsense"), "NAME=PATH"),
    ],
)
def test_bad_input_is_refused(model: Path, arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(TuneserveError, match=problem):
        run(model, "--concurrency", "1", "--runs", "1", *arguments)
