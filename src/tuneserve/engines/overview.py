"""What of the engines is on this machine, and what each could do here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneserve._version import __version__
from tuneserve.engines import environments
from tuneserve.engines._checks import gpu_problems
from tuneserve.engines.environments import Environment
from tuneserve.engines.kind import ServeOptions
from tuneserve.engines.registry import ENGINES
from tuneserve.errors import TuneserveError


@dataclass(frozen=True)
class Found:
    """An installation; ``version`` is None where it is not told before it runs."""

    version: str | None
    python: Path | None = None
    versions: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Overview:
    """One engine, or what exports use in an environment of its own.

    ``found`` is None where it is not installed, which ``install`` then remedies. ``problems`` keep it from running
    here, installed or not.
    """

    name: str
    purpose: str
    found: Found | None
    install: str
    problems: tuple[str, ...] = ()


_PURPOSES = {
    "native": "models and adapters on CPUs and NVIDIA GPUs; part of tuneserve",
    "vllm": "throughput, on NVIDIA GPUs or CPUs; merged models, and adapters by name",
    "sglang": "throughput with much shared text, on NVIDIA GPUs; merged models, and adapters by name",
    "llama.cpp": "GGUF files on CPUs and small GPUs, and adapters by name",
    "ollama": "GGUF files in an Ollama that runs already",
    "unsloth": "Unsloth's FastLanguageModel on an NVIDIA GPU, one sequence at a time",
}
_NEEDS_GPU = ("sglang", "unsloth")
_OWN_WAY = {
    "native": "it is always there",
    "ollama": "install it from https://ollama.com and run 'ollama serve'",
    "llama.cpp": "put llama-server on the PATH, or run 'tuneserve engines install llama.cpp'",
}


def overview() -> list[Overview]:
    """Return all engines, then the other environments."""
    gpu = tuple(gpu_problems())
    others = [name for name in environments.PINNED if name not in ENGINES]
    return [
        Overview(
            name=name,
            purpose=_PURPOSES.get(name) or environments.PINNED[name].purpose,
            found=_found(name),
            install=_OWN_WAY.get(name) or f"run 'tuneserve engines install {name}'",
            problems=gpu if name in _NEEDS_GPU else (),
        )
        for name in (*ENGINES, *others)
    ]


def of_environment(environment: Environment) -> Found:
    """Return an environment as an installation."""
    return Found(environment.version, environment.python, environment.versions)


def _found(name: str) -> Found | None:
    finders: Mapping[str, Callable[[], Found | None]] = {
        "native": lambda: Found(__version__),
        "llama.cpp": _llama_cpp,
        "ollama": _ollama,
    }
    try:
        if name in finders:
            return finders[name]()
        environment = environments.find(name)
    except TuneserveError:
        return None
    return None if environment is None else of_environment(environment)


def _llama_cpp() -> Found:
    from tuneserve.engines._llama_cpp_program import Library, find_program

    program = find_program(ServeOptions())
    return of_environment(program.environment) if isinstance(program, Library) else Found(program.version)


def _ollama() -> Found:
    from tuneserve.engines.ollama import running_version

    return Found(running_version())
