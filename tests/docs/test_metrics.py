"""Protects: the page about operating names every metric that the server exports, and none that it does not."""

import re
from pathlib import Path

from tuneserve.engines.contract import EngineStats
from tuneserve.gateway._metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"


def exported() -> set[str]:
    """Return the names by which Prometheus knows what a gateway with one model exports."""
    load = EngineStats(running=0, waiting=0, cache_usage=0.0)
    text = Metrics().render({"m": load}, {"m": True}).decode()
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def documented() -> set[str]:
    """Return the names in the first column of the table."""
    section = PAGE.read_text("utf-8").partition("## Watching")[2].partition("\n##")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", " ".join(rows)))


def test_each_metric_is_on_the_page_and_each_on_the_page_is_exported() -> None:
    found, named = exported(), documented()
    of_process = {name for name in found if name.startswith("process_")}
    assert of_process and "process_*" in named
    assert named - {"process_*"} == found - of_process
