"""Protects: what is installed with a checkout has the version that was tested, whatever appears on the index."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, metadata
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
# The script that installs chooses PyTorch's build, which pins what belongs to it.
NOT_PINNED = re.compile(r"tuneserve|torch|triton|setuptools|nvidia-.*|cuda-.*")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Return the versions of all packages here that tuneserve or an extra of it asks for, directly or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    found: dict[str, str] = {}
    waiting = list(set(chain(*map(names, asked))))
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version
        new = set(chain(*(names(each, extra) for each in package.requires or ()))) - seen
        seen |= new
        waiting += new
    return found


def names(text: str, extra: str = "") -> list[tuple[str, str]]:
    """Return what a requirement names, each with one of its extras or none, as far as it holds here."""
    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return []
    return [(normal(requirement.name), each) for each in ("", *requirement.extras)]


def test_every_package_is_pinned_to_the_version_that_is_here() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert lines == sorted(lines, key=str.lower)
    pinned = dict(line.split("==") for line in lines)
    pinned = {normal(name): version for name, version in pinned.items()}
    here = {name: version for name, version in installed().items() if not NOT_PINNED.fullmatch(name)}
    assert {"aiohttp", "grpcio", "uvloop", "starlette"} <= here.keys()
    assert here.items() <= pinned.items(), here.items() - pinned.items()


def test_no_pin_asks_for_a_newer_python_than_the_oldest_that_is_promised() -> None:
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    asked = {name: metadata(name).get_all("Requires-Python") or [""] for name in installed()}
    assert [name for name, (versions,) in asked.items() if oldest not in SpecifierSet(versions)] == []
