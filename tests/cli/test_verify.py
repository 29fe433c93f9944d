"""Protects: ``tuneserve verify`` says what it found as a table or JSON, and by its exit code."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneserve import artifacts
from tuneserve.cli import app
from tuneserve.errors import InputError, OutputError


@pytest.fixture(scope="module")
def adapter(
    tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path], write_adapter: Callable[..., Path]
) -> Path:
    home = tmp_path_factory.mktemp("verify")
    adapter = write_adapter(home / "adapter", write_model(home / "base"), scale=0.3)
    artifacts.export(adapter, home / "merged", verify=False)
    return adapter


def test_the_same_model_is_0_and_another_1(adapter: Path) -> None:
    home = adapter.parent
    right = CliRunner().invoke(app, ["verify", str(home / "merged"), "--against", str(adapter)])
    assert right.exit_code == 0, right.output
    assert "same model" in right.output
    wrong = CliRunner().invoke(app, ["verify", str(home / "base"), "--against", str(adapter)])
    assert wrong.exit_code == 1
    assert "what broke: merge" in wrong.output


def test_json_is_the_whole_report(adapter: Path) -> None:
    command = ["verify", str(adapter.parent / "merged"), "--against", str(adapter), "--method", "fp8", "--json"]
    report = json.loads(CliRunner().invoke(app, command).output)
    assert (report["method"], report["passed"], report["failures"]) == ("fp8", True, [])


def test_the_page_shows_each_verdict_and_where_the_two_part(adapter: Path, tmp_path: Path) -> None:
    home = adapter.parent
    for name, code, verdict in (("merged", 0, "The same model"), ("base", 1, "Not the same model")):
        page = tmp_path / f"{name}.html"
        command = ["verify", str(home / name), "--against", str(adapter), "--report", str(page)]
        assert CliRunner().invoke(app, command).exit_code == code
        text = page.read_text()
        assert f"<h1>{verdict}</h1>" in text and re.search(r"prompt \d+: mean", text)
        assert ("What broke: merge" in text) == bool(code)
        again = CliRunner().invoke(app, command)
        assert isinstance(again.exception, OutputError) and "already" in str(again.exception)
    alone = CliRunner().invoke(app, ["verify", str(home / "merged"), "--report", str(tmp_path / "x.html")])
    assert isinstance(alone.exception, InputError) and "--report" in str(alone.exception)


def test_without_a_reference_the_hashes_are_checked(adapter: Path) -> None:
    merged = adapter.parent / "merged"
    result = CliRunner().invoke(app, ["verify", str(merged)])
    assert result.exit_code == 0
    assert "model.safetensors" in result.output
    (merged / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["verify", str(merged), "--json"])
    assert result.exit_code == 1
    assert {"name": "config.json", "state": "changed"} in json.loads(result.output)["files"]
