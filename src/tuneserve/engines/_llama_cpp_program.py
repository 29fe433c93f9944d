"""The program that serves GGUF files: which one, and its command line."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tuneserve.engines import environments
from tuneserve.engines.environments import Environment
from tuneserve.engines.kind import ServeOptions
from tuneserve.errors import EngineError, InputError

_PROGRAM = "llama-server"
_LAUNCHER = Path(__file__).with_name("_llama_cpp_launcher.py")
_PROBE_SECONDS = 60
_ALL_LAYERS = 999
# The gateway renders templates; a broken one of the model would keep the server from starting.
_TEMPLATE = "chatml"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is served; ``context_length`` counts the tokens of one sequence, of which ``max_running`` fit at once."""

    model: Path
    adapters: tuple[Path, ...]
    context_length: int
    max_running: int
    arguments: tuple[str, ...] = ()


class Program(Protocol):
    """A way to run llama.cpp's server."""

    @property
    def version(self) -> str | None:
        """Its version, where it is known before it runs."""

    @property
    def has_llguidance(self) -> bool:
        """Whether it takes the grammars of llguidance."""

    def devices(self) -> list[str]:
        """Return the accelerators that it can use."""

    def command(self, settings: Settings, port: int, devices: list[str]) -> list[str]:
        """Return the program and its arguments."""


@dataclass(frozen=True)
class Binary:
    """A ``llama-server``; whether it was built with llguidance cannot be found out, because one without would abort."""

    path: Path
    version: None = None
    has_llguidance: bool = False

    def devices(self) -> list[str]:
        """Ask it for its devices.

        Raises:
            EngineError: it does not run.
        """
        command = [str(self.path), "--list-devices"]
        try:
            result = subprocess.run(  # noqa: S603
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            raise EngineError(f"{self.path} does not run as a {_PROGRAM}; name one that does.") from None
        _, _, listed = result.stdout.decode(errors="replace").partition("Available devices:")
        names = [line.partition(":")[0].strip() for line in listed.splitlines() if ":" in line]
        return [name for name in names if name]

    def command(self, settings: Settings, port: int, devices: list[str]) -> list[str]:
        """Return its command line, the user's own arguments last."""
        adapters = [part for path in settings.adapters for part in ("--lora", str(path))]
        return [
            str(self.path),
            "--model", str(settings.model),
            "--host", "127.0.0.1",
            "--port", str(port),
            "--ctx-size", str(settings.context_length * settings.max_running),
            "--parallel", str(settings.max_running),
            "--chat-template", _TEMPLATE,
            "--no-context-shift",
            "--slots",
            "--metrics",
            *(["--n-gpu-layers", str(_ALL_LAYERS)] if devices else []),
            *adapters,
            *(["--lora-init-without-apply"] if adapters else []),
            *settings.arguments,
        ]  # fmt: skip


@dataclass(frozen=True)
class Library:
    """The package xllamacpp in an environment of its own; its wheel computes on the processor."""

    environment: Environment
    has_llguidance: bool = True

    @property
    def version(self) -> str:
        """The package's version, whose last number is llama.cpp's build."""
        return self.environment.version

    def devices(self) -> list[str]:
        """Return none."""
        return []

    def command(self, settings: Settings, port: int, devices: list[str]) -> list[str]:  # noqa: ARG002
        """Return the launcher's command line."""
        fields = {
            "model": str(settings.model),
            "lora_adapters": [str(path) for path in settings.adapters],
            "lora_init_without_apply": True,
            "hostnames": ["127.0.0.1"],
            "port": port,
            "n_ctx": settings.context_length * settings.max_running,
            "n_parallel": settings.max_running,
            "chat_template": _TEMPLATE,
            "endpoint_slots": True,
            "endpoint_metrics": True,
            "cache_ram_mib": 0,
            "offline": True,
            "ui": False,
        }
        return [str(self.environment.python), "-I", str(_LAUNCHER), json.dumps(fields)]


def find_program(options: ServeOptions) -> Program:
    """Return the binary that the user names, else the one on PATH, else the installed library.

    Raises:
        InputError: the named binary is not one, or arguments are given to the library.
        EngineError: there is none.
    """
    if options.program is not None:
        path = options.program.expanduser().absolute()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise InputError(f"{path} is not a program; name a {_PROGRAM} with --engine-binary.")
        return Binary(path)
    if found := shutil.which(_PROGRAM):
        return Binary(Path(found))
    environment = environments.find("llama.cpp")
    if environment is None:
        raise EngineError(
            f"there is no {_PROGRAM}; run 'tuneserve engines install llama.cpp', or name one with --engine-binary."
        )
    if options.arguments:
        raise InputError(
            f"the installed llama.cpp is a library and takes no arguments; name a {_PROGRAM} with --engine-binary."
        )
    return Library(environment)


def child_environment(key: str, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the server's environment: the key, and nothing of ``inherited`` that would change its settings.

    Its store of past prompts in main memory is switched off here, because older builds know no argument for it.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith("LLAMA_")}
    return kept | {"LLAMA_API_KEY": key, "LLAMA_ARG_CACHE_RAM": "0"}
