"""Protects: an environment of its own is whole or not used, is made once, and its interpreter is really another."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tuneserve._version import __version__
from tuneserve.engines import environments
from tuneserve.engines.child import run_child
from tuneserve.engines.environments import Pinned
from tuneserve.errors import EngineError, InputError


def write_wheel(directory: Path, name: str, version: str) -> Path:
    """Write a wheel of one module that holds its version."""
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return wheel


def pinned(requirement: str) -> dict[str, Pinned]:
    return {"tiny": Pinned(purpose="tests", requirements=(requirement,), torch=None, module="tiny")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    wheel = write_wheel(tmp_path, "tiny", "1.5")
    monkeypatch.setattr(environments, "PINNED", pinned(f"tiny @ {wheel.as_uri()}"))
    return tmp_path / "cache" / "environments"


def test_it_is_made_once_and_counts_only_while_it_is_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_made = cache / "tiny"
    (half_made / "bin").mkdir(parents=True)
    (half_made / "leftover").write_text("of a run that was killed")
    assert environments.find("tiny") is None

    lines: dict[int, list[str]] = {0: [], 1: []}
    threads = [threading.Thread(target=environments.install, args=("tiny", lines[index].append)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, lines.values())) == [False, True], "one makes it, the other finds it"

    found = environments.require("tiny")
    assert found.version == "1.5"
    assert not (half_made / "leftover").exists()
    code = "import sys, tiny; print(sys.prefix, tiny.version)"
    said = subprocess.run([found.python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(half_made), "1.5"]
    script = subprocess.run([half_made / "bin" / "pip", "--version"], capture_output=True, text=True, check=True)
    assert str(half_made) in script.stdout, "the scripts in it must work where it stays"

    state = half_made / "environment.json"
    whole = state.read_text()
    for broken in ("", "[", "[]", "{}", json.dumps({**json.loads(whole), "versions": {"tiny": 3}})):
        state.write_text(broken)
        assert environments.find("tiny") is None
    state.write_text(whole)
    assert environments.find("tiny") == found
    with monkeypatch.context() as patch:
        patch.setattr(environments, "PINNED", pinned("tiny==2"))
        assert environments.find("tiny") is None, "made of other requirements than are wanted now"
    found.python.unlink()
    found.python.symlink_to("/nowhere/python")
    assert environments.find("tiny") is None


def test_what_cannot_be_made_leaves_nothing_and_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "PINNED", pinned("tiny @ file:///nowhere/tiny-1-py3-none-any.whl"))
    with pytest.raises(EngineError, match=r"could not be made .*nowhere.*engines install tiny"):
        environments.install("tiny", lambda _: None)
    assert not (cache / "tiny").exists()


@pytest.mark.parametrize("has_gpu", [False, True])
def test_pytorch_is_the_cpu_build_where_there_is_no_gpu_and_what_does_not_import_is_removed(
    cache: Path, monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    commands: list[str] = []

    monkeypatch.setattr(environments, "has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.setattr(environments, "PINNED", {"tiny": Pinned("tests", ("tiny==1",), torch="2.13.0", module="tiny")})

    def run(command: list[str | Path], *_: object, **__: object) -> object:
        (cache / "tiny").mkdir(parents=True, exist_ok=True)
        commands.append(" ".join(map(str, command)))
        # The index that pip knows has no CPU build, and the package does not import.
        fails = command[-1] == "torch==2.13.0+cpu" or "-c" in command
        return run_child(["false"] if fails else ["true"], lambda _: None)

    monkeypatch.setattr(environments, "run_child", run)
    with pytest.raises(EngineError):
        environments.install("tiny", lambda _: None)
    assert not (cache / "tiny").exists()
    assert commands[-1].endswith("-c import tiny")
    cpu_builds = [command for command in commands if "+cpu" in command]
    assert len(cpu_builds) == (0 if has_gpu else 2)
    assert all("download.pytorch.org/whl/cpu" in command for command in cpu_builds[1:])
    assert any(command.endswith("tiny==1 torch==2.13.0") for command in commands)


def test_a_child_keeps_the_lock_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tuneserve.engines.child import run_child\n"
        "from tuneserve.sources import locked\n"
        "with locked(Path(sys.argv[1])) as lock:\n"
        "    command = ['sh', '-c', 'echo $$; exec sleep 60']\n"
        "    run_child(command, lambda line: print(line, flush=True), inherited=[lock])\n"
    )
    lock = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        held = subprocess.run(["flock", "--nonblock", lock, "true"], check=False)
        assert held.returncode == 1
    finally:
        os.kill(child, signal.SIGKILL)
    assert subprocess.run(["flock", "--timeout", "10", lock, "true"], check=False).returncode == 0


def test_a_users_own_interpreter_must_run_and_have_the_package(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not run as a Python"):
        environments.require("tiny", tmp_path / "no-such-python")
    with pytest.raises(EngineError, match="does not run as a Python"):
        environments.require("tiny", Path("/bin/true"))
    with pytest.raises(EngineError, match="has no tiny"):
        environments.require("tiny", Path(sys.executable))
    with pytest.raises(EngineError, match="tuneserve engines install tiny"):
        environments.require("tiny")
    with pytest.raises(InputError, match="choose one of tiny"):
        environments.require("tinny")


def test_an_exception_ends_the_whole_group_of_a_child(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child(["sh", "-c", "sleep 60 & echo $!; wait"], interrupt)
    deadline = time.monotonic() + 10
    while _runs(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pids[0])


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_reason_is_what_a_child_said_last() -> None:
    def run(script: str) -> str:
        return run_child(["sh", "-c", script], lambda _: None).reason

    assert run("echo one; echo 'two.' >&2; echo; exit 3") == "two"
    assert run("exit 3") == "it ended with exit code 3 and said nothing"
    assert run("echo last; kill -9 $$") == "it was ended by signal 9 after 'last'"
    lines: list[str] = []
    run_child(["printf", r"1%%\r2%%\r\n\377"], lines.append)
    assert lines == ["1%", "2%", "\ufffd"]
    with pytest.raises(EngineError, match="cannot be started"):
        run_child(["/nowhere/program"], lines.append)


def test_the_command_lists_and_refuses(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # Nothing listens there.
        environment = {**os.environ, "TUNESERVE_CACHE": str(tmp_path), "OLLAMA_HOST": "127.0.0.1:9", "PATH": "/nowhere"}
        command = [sys.executable, "-m", "tuneserve", "engines", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    listed = {engine["name"]: engine for engine in json.loads(run("--json").stdout)}
    assert list(listed) == ["native", "vllm", "sglang", "llama.cpp", "ollama", "unsloth", "llmcompressor"]
    assert [name for name, engine in listed.items() if engine["installed"]] == ["native"]
    assert listed["native"]["version"] == __version__
    assert listed["sglang"]["problems"] == ["it needs an NVIDIA GPU, and this machine has none"]
    assert listed["llmcompressor"] == {
        "name": "llmcompressor",
        "installed": False,
        "purpose": environments.PINNED["llmcompressor"].purpose,
        "install": "run 'tuneserve engines install llmcompressor'",
        "problems": [],
    }
    plain = run().stdout
    assert "tuneserve engines install llmcompressor" in plain
    assert "not here: it needs an NVIDIA GPU" in plain
    refused = run("install", "llmcompresser")
    assert refused.returncode == 2
    assert refused.stderr == "error: there is no environment 'llmcompresser'; choose one of llmcompressor, llama.cpp.\n"
