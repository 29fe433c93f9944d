"""Protects: what the driver reports becomes the machine that it is, and a machine without one is its processor."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.hardware import detect_machine
from tuneserve.hardware._table import gpu_reported


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what puts an ``nvidia-smi`` on the PATH that reports the given lines."""

    def install(lines: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{lines}\nEOF\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def test_gpus_come_from_the_driver_with_the_memory_it_reports(driver: Callable[[str], None]) -> None:
    driver("NVIDIA H100 80GB HBM3, 81559, 9.0\nNVIDIA H100 80GB HBM3, 81559, 9.0")
    machine = detect_machine()
    assert (machine.name, machine.kind, len(machine.gpus)) == ("2xH100-80GB", "nvidia", 2)
    gpu = machine.gpus[0]
    assert (gpu.memory, gpu.bandwidth, gpu.capability) == (81559 << 20, 3350e9, (9, 0))
    assert machine.memory is not None and machine.cores


def test_unlike_gpus_are_taken_for_the_smallest_and_unknown_ones_have_no_bandwidth(
    driver: Callable[[str], None],
) -> None:
    driver("NVIDIA Imaginary 9, 40960, 13.2\nNVIDIA GeForce RTX 4090, 24564, 8.9\nnonsense")
    machine = detect_machine()
    assert machine.name == "2xRTX-4090-24GB"
    assert "differ" in machine.notes[0]
    driver("NVIDIA Imaginary 9, 40960, 13.2")
    unknown = detect_machine().gpus[0]
    assert (unknown.name, unknown.bandwidth, unknown.capability) == ("NVIDIA Imaginary 9", None, (13, 2))


def test_a_driver_that_lists_nothing_leaves_the_processor(driver: Callable[[str], None]) -> None:
    driver("")
    machine = detect_machine()
    assert machine.kind == "cpu" and not machine.gpus
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.bandwidth is not None and 1e8 < machine.bandwidth < 1e13


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA L4", "L4-24GB"),
        ("NVIDIA L40S", "L40S-48GB"),
        ("Tesla T4", "T4-16GB"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX-4070-Ti-Super-16GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada-48GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA T400", None),
    ],
)
def test_reported_names_are_not_mistaken_for_their_siblings(reported: str, name: str | None) -> None:
    gpu = gpu_reported(reported)
    assert (gpu and gpu.name) == name
