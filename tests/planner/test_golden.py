"""Protects: what is printed for the demo and eight billion parameters on ten machines; read a change before taking it.

``python tests/planner/write_golden.py`` writes the files anew.
"""

from pathlib import Path

import pytest

from tuneserve.planner import explain, plan

GOLDEN = Path(__file__).parent / "golden"
MACHINES = (
    "2xH100-80GB", "2x8xH100-80GB", "A100-40GB", "L4-24GB", "T4-16GB", "V100-16GB", "RTX-4090-24GB", "2xRTX-3060-12GB",
    "cpu-16c-64GB-200GBps", "mac-m4-64GB",
)  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_the_tree_of_the_demo(machine: str) -> None:
    for source in ("demo", "demo:tickets"):
        golden = GOLDEN / f"{source.replace(':', '-')}-{machine}.txt"
        assert explain(plan(source, hardware=machine)) + "\n" == golden.read_text()


@pytest.mark.parametrize("machine", MACHINES)
def test_the_tree_of_eight_billion_parameters(machine: str, llama_8b: Path) -> None:
    said = explain(plan(llama_8b, hardware=machine)).replace(str(llama_8b), "llama-8b")
    assert said + "\n" == (GOLDEN / f"llama-8b-{machine}.txt").read_text()
