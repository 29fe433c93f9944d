"""Protects: hardened units that systemd itself has nothing to say about, whose command means what it says."""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.errors import InputError

Render = Callable[..., dict[str, str]]
Make = Callable[..., Path]


def settings(text: str) -> dict[str, list[str]]:
    """Read a unit by systemd.syntax(7): continued lines, and settings that may be said several times."""
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line and line[0] not in "[#;":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def command(text: str) -> list[str]:
    """Return the command of a unit as systemd.service(5) reads it."""
    words = shlex.split(settings(text)["ExecStart"][0])
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


def unit(files: dict[str, str]) -> str:
    (text,) = (text for name, text in files.items() if name.endswith(".service"))
    return text


def test_the_unit_is_hardened_and_drains(render: Render, make_llama: Make, tmp_path: Path) -> None:
    text = unit(render("systemd", make_llama(), "cpu-4c-16GB", drain_seconds=60))
    found = settings(text)
    for name, value in {
        "DynamicUser": "yes", "ProtectSystem": "strict", "ProtectHome": "tmpfs", "NoNewPrivileges": "yes",
        "PrivateDevices": "yes", "CapabilityBoundingSet": "", "KillMode": "mixed", "TimeoutStopSec": "75",
        "SystemCallFilter": "@system-service", "IPAddressDeny": "any", "IPAddressAllow": "localhost",
    }.items():  # fmt: skip
        assert found[name] == [value]
    assert found["LoadCredential"] == [f"keys.toml:{tmp_path / 'keys.toml'}"]


def test_systemd_takes_the_unit_and_finds_little_exposed(render: Render, make_llama: Make, tmp_path: Path) -> None:
    path = tmp_path / "tuneserve-x.service"
    path.write_text(unit(render("systemd", make_llama(), "cpu-4c-16GB")))
    known = {line.partition("=")[0] for line in path.read_text().splitlines() if "=" in line and line[0] not in " #"}
    assert len(known) > 30
    if (analyze := shutil.which("systemd-analyze")) is None:
        return
    verified = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    # In tenths; from 2.0 on systemd itself calls it more than little.
    command = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_command_survives_a_hostile_name(render: Render, make_llama: Make, tmp_path: Path) -> None:
    source = tmp_path / "a %h b #; {c} é"
    make_llama().rename(source)
    text = unit(render("systemd", source, "cpu-4c-16GB"))
    words = command(text)
    assert words[2:5] == ["tuneserve", "serve", str(source)]
    assert f"--name={source.name}" in words
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert f'"{source}"'.replace("%", "%%") in settings(text)["BindReadOnlyPaths"]


def test_a_path_that_a_unit_cannot_name_is_refused(render: Render, make_llama: Make, tmp_path: Path) -> None:
    for name in ("a:b", 'a"b', "a'b", "a\\b", "a$b"):
        source = make_llama().rename(tmp_path / name)
        with pytest.raises(InputError, match="which a unit cannot name; move it to another path"):
            render("systemd", source, "cpu-4c-16GB")


def test_programs_and_models_outside_the_system_are_bound_once(render: Render, make_llama: Make) -> None:
    paths = [
        Path(path.strip('"'))
        for path in settings(unit(render("systemd", make_llama(), "cpu-4c-16GB")))["BindReadOnlyPaths"]
    ]
    for path in paths:
        assert path.is_dir() and not path.is_relative_to("/usr")
        assert not any(path != other and path.is_relative_to(other) for other in paths)
