"""Protects: kernels are compiled once for each machine, and what goes wrong is said."""

from pathlib import Path

import pytest

from tuneserve.errors import EngineError
from tuneserve.kernels import cpu


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_one_build_is_used_until_something_changes(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    compiler = script(
        tmp_path / "compiler",
        f'echo "version 1"; [ "$1" = --version ] && exit\necho "$@" >> {log}\nfor last; do :; done\n: > "$last"',
    )
    monkeypatch.setenv("CXX", str(compiler))
    first = cpu.build()
    assert cpu.build() == first
    assert len(log.read_text().splitlines()) == 1
    assert cpu.build("x86-64") != first
    script(compiler, compiler.read_text().replace("version 1", "version 2"))
    assert cpu.build() != first
    assert len(log.read_text().splitlines()) == 3
    assert sorted(path.suffix for path in own_cache.iterdir() if path.name != ".lock") == [".so"] * 3


def test_a_compiler_that_fails_is_reported_and_leaves_nothing(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "bad", 'echo "x.cpp:1: error: no such luck" >&2; exit 1')))
    with pytest.raises(EngineError, match="no such luck"):
        cpu.build()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="CXX names no-such-compiler"):
        cpu.build()
    assert [path.name for path in own_cache.iterdir()] == [".lock"]


def test_without_a_place_for_it_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file" / "cache", "~nobody-at-all"):
        monkeypatch.setenv("TUNESERVE_CACHE", str(cache))
        with pytest.raises(EngineError, match=r"cannot be kept: .*set TUNESERVE_CACHE"):
            cpu.build()


def test_a_driver_for_c_links_what_cpp_needs(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "gcc")
    assert cpu.load(cpu.build("x86-64")).packed_bytes(cpu.Kind.FLOAT32, 16, 16) > 0
