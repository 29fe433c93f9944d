"""The table of GPUs, ``gpus.toml``."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from tuneserve.hardware._machine import Gpu

_VARIANTS = frozenset(("Ti", "SUPER", "PCIe", "NVL", "D", "Laptop", "Max-Q", "MIG", "64GB"))


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(files(__package__).joinpath("gpus.toml").read_text())


def plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def gpus() -> tuple[Gpu, ...]:
    """Return every NVIDIA GPU of the table."""
    return tuple(_gpu(row) for row in _table()["gpu"])


@cache
def _by_name() -> Mapping[str, Gpu]:
    found = {}
    for row in _table()["gpu"]:
        for name in (row["name"], *row.get("aliases", ())):
            found[plain(name)] = _gpu(row)
    return found


def gpu_named(name: str) -> Gpu | None:
    """Return the GPU that a person calls ``name`` ("rtx4090", "H100-80GB"), None where there is none."""
    return _by_name().get(plain(name))


def gpu_reported(name: str) -> Gpu | None:
    """Return the GPU that the driver calls ``name`` ("NVIDIA A100-SXM4-80GB"), None where there is none."""
    words = name.removeprefix("NVIDIA ").removeprefix("Tesla ").split()
    for row in _table()["gpu"]:
        for called in (called.split() for called in row["reported"]):
            # What follows may be the kind of memory, but not what makes it another GPU.
            if words[: len(called)] == called and not _VARIANTS & {*words[len(called) :]}:
                return _gpu(row)
    return None


def mac_bandwidth(chip: str) -> float | None:
    """Return the bytes per second of an Apple chip's memory ("m4max"), None where there is no such chip."""
    return next((row["bandwidth"] * 1e9 for row in _table()["mac"] if plain(row["name"]) == plain(chip)), None)


def names() -> list[str]:
    """Return every name that a machine can be described by."""
    macs = [f"mac-{row['name'].lower()}-64GB" for row in _table()["mac"]]
    return ["auto", "cpu", "cpu-16c-64GB", *(row["name"] for row in _table()["gpu"]), *macs]


def _gpu(row: Mapping[str, Any]) -> Gpu:
    major, _, minor = row["capability"].partition(".")
    return Gpu(
        name=row["name"],
        memory=row["memory_gb"] * 10**9,
        bandwidth=row["bandwidth"] * 1e9,
        capability=(int(major), int(minor)),
    )
