"""Protects: Dockerfiles that hadolint has nothing to say about, with every version pinned and no root at the end."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

Render = Callable[..., dict[str, str]]
Make = Callable[..., Path]
HADOLINT = Path(sys.prefix) / "bin" / "hadolint"
HARDWARE = ("cpu-4c-16GB", "2xA100-80GB")


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(HADOLINT), "--no-color", "--failure-threshold", "style", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_the_linter_finds_what_is_wrong() -> None:
    assert "DL3006" in lint("FROM python\nUSER root\n").stdout


@pytest.mark.parametrize("hardware", HARDWARE)
def test_the_dockerfile_is_clean_and_leaves_root(render: Render, make_llama: Make, hardware: str) -> None:
    text = render("compose", make_llama(), hardware)["Dockerfile"]
    result = lint(text)
    assert result.returncode == 0, result.stdout
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert len(re.findall(r"^FROM python:\d+\.\d+\.\d+-", text, re.MULTILINE)) == 2
    # A second index for everything would let whoever owns a name there choose what is installed.
    assert "--extra-index-url" not in text
    assert re.search(
        r"pip install --no-deps torch==[\d.]+\+cpu --index-url https://download\.pytorch\.org/whl/cpu ", text
    )


@pytest.mark.parametrize("hardware", HARDWARE)
def test_every_package_has_the_version_that_runs_here(render: Render, make_llama: Make, hardware: str) -> None:
    files = render("compose", make_llama(), hardware)
    pinned = dict(line.split("==") for line in files["constraints.txt"].splitlines())
    for name in ("fastapi", "tokenizers", "uvicorn", "starlette"):
        assert pinned[name] == version(name)
    assert pinned["torch"].endswith("+cpu") and "tuneserve" not in pinned


def test_a_gpu_of_the_native_engine_has_the_index_s_own_pytorch(render: Render, make_llama: Make) -> None:
    files = render("compose", make_llama(), "A100-80GB", objective="simple")
    assert "/opt/vllm" not in files["Dockerfile"] and "download.pytorch.org" not in files["Dockerfile"]
    assert lint(files["Dockerfile"]).returncode == 0
    assert re.search(r"^torch==[\d.]+$", files["constraints.txt"], re.MULTILINE)


def test_vllm_and_what_it_needs_over_several_nodes(render: Render, llama_70b: Path) -> None:
    options = {"image": "r.example/t:1", "volume": "models", "concurrency": 1}
    text = render("kubernetes", llama_70b, "2x2xA100-80GB", **options)["Dockerfile"]
    assert lint(text).returncode == 0
    assert re.search(r'/opt/vllm/bin/pip install "vllm==[\d.]+" "ray\[cgraph\]==[\d.]+"', text)
