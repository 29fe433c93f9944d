"""Protects: ``tuneserve deploy`` as typed, and that ``tuneserve serve`` takes what the files tell it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tuneserve.cli import app

Make = Callable[..., Path]
SERVE = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    command = [sys.executable, "-m", "tuneserve", "keys", "add", "alice", "--file", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def run(source: Path, out: Path, keys: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneserve", "deploy", str(source), str(out)]
    command += ["--api-key-file", str(keys), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def arguments(target: str, out: Path) -> list[str]:
    """Return what the first server of a deployment is told."""
    if target == "compose":
        found: Any = yaml.safe_load((out / "compose.yaml").read_text())["services"]["serve"]["command"]
    else:
        manifest = yaml.safe_load((out / "manifests" / "deployment.yaml").read_text())
        found = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
    assert found[0] == "serve"
    return list(found[1:])


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("compose", ["--hardware", "cpu-4c-16GB"]),
        ("kubernetes", ["--hardware", "A100-80GB", "--image", "r.example/t:1", "--volume", "models"]),
    ],
)
def test_serve_takes_every_argument(
    make_llama: Make, tmp_path: Path, keys: Path, target: str, options: list[str]
) -> None:
    out = tmp_path / "out"
    result = run(make_llama(), out, keys, "--target", target, "--drain-timeout", "7", "--no-verify", *options)
    assert result.returncode == 0, result.stderr
    context = SERVE.make_context("serve", arguments(target, out))
    assert context.params["drain_timeout"] == 7 and context.params["no_verify"]
    assert context.params["api_key_file"].name in ("api-keys", "keys.toml")
    assert (out / "README.md").is_file() and (out / "Dockerfile").is_file()


def test_a_dry_run_prints_and_writes_nothing(make_llama: Make, tmp_path: Path, keys: Path) -> None:
    options = ("--target", "compose", "--hardware", "cpu-4c-16GB", "--dry-run")
    printed = run(make_llama(), tmp_path / "out", keys, *options)
    assert "--- compose.yaml\nname: " in printed.stdout
    listed = json.loads(run(make_llama(), tmp_path / "out", keys, *options, "--json").stdout)
    assert listed["target"] == "compose" and "services" in yaml.safe_load(listed["files"]["compose.yaml"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "kubernetes"], "describe one of its machines with --hardware"),
        (["--target", "kubernetes", "--hardware", "A100-80GB", "--image", "a"], "the cluster cannot see it"),
        (["--target", "nomad"], "the target 'nomad' is unknown"),
    ],
)
def test_a_refusal_leaves_nothing(make_llama: Make, tmp_path: Path, keys: Path, options: list[str], says: str) -> None:
    result = run(make_llama(), tmp_path / "out", keys, *options)
    assert result.returncode == 2 and says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()
