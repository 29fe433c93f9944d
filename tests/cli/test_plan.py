"""Protects: ``tuneserve plan`` as typed: a tree for people, documented JSON for programs, refusals in one sentence."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]
DOCUMENT = Path(__file__).parents[2] / "docs" / "plan.md"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneserve", "plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tree_and_the_commands_are_printed(make_llama: Make) -> None:
    result = run(make_llama(), "--hardware", "rtx4090")
    assert result.returncode == 0
    assert "└─ merged_16bit on vllm" in result.stdout
    assert "tuneserve serve" in result.stdout
    assert not result.stderr


def test_the_page_has_a_bar_for_each_option_whose_memory_was_estimated(make_llama: Make, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    result = run(make_llama(), "--hardware", "rtx4090", "--objective", "latency", "--report", page)
    assert result.returncode == 0, result.stderr
    text, (taken,) = page.read_text(), re.findall("└─ (.*) on (.*?),? *(?:without.*)?$", result.stdout, re.MULTILINE)
    assert f"<h1>{taken[0]} on {taken[1]}" in text
    assert f"{taken[0]} on {taken[1]}: weights " in text and "what an engine uses" in text
    for step in re.findall("├─ (.*)", result.stdout):
        assert step.split("?")[0].replace("<", "&lt;") in text
    again = run(make_llama("again"), "--hardware", "rtx4090", "--report", page)
    assert again.returncode == 2 and "already" in again.stderr


def names(value: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of all fields of a JSON value."""
    if isinstance(value, list):
        return set().union(*(names(each, prefix) for each in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    found = {f"{prefix}{name}" for name in value}
    return found.union(*(names(each, f"{prefix}{name}.") for name, each in value.items()))


def test_every_field_of_the_json_is_documented_and_the_other_way_round(make_llama: Make, make_lora: Make) -> None:
    adapter = make_lora(make_llama(num_experts=4, num_experts_per_tok=2))
    result = run(adapter, "--hardware", "2xH100-80GB", "--concurrency", "64", "--context", "100", "--json")
    plan = json.loads(result.stdout)
    documented = set(re.findall(r"^\| `([\w.]+)` \|", DOCUMENT.read_text().partition("## The JSON")[2], re.MULTILINE))
    assert names(plan) == documented
    assert plan["format"] == 1
    assert plan["wish"] == {"objective": "throughput", "context": 100, "concurrency": 64, "adapters": 1}
    assert plan["choice"]["engine"] == "vllm" and plan["choice"]["replicas"] == 2
    assert plan["commands"][0].endswith("--method merged_16bit")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hardware", "h1000"], "nearest names are H100-80GB"),
        (["--hardware", ""], "nearest names"),
        (["--hardware", "9999999xH100"], "outside 1 to 16"),
        (["--context", "0"], "a context of 0 tokens"),
        (["--context", "99999999999999999999999"], "choose one from 2"),
        (["--concurrency", "-3"], "concurrency is outside"),
        (["--adapters", "100000000"], "adapters is outside"),
        (["--objective", "beauty"], "beauty"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence_and_exit_code_2(
    make_llama: Make, arguments: list[str], said: str
) -> None:
    result = run(make_llama(), "--hardware", "rtx4090", *arguments)
    assert result.returncode == 2
    assert said in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr and not result.stdout
