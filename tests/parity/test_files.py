"""Protects: an artifact whose files were changed, lost or renamed is found by its manifest."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve import artifacts, parity
from tuneserve.errors import SourceError


@pytest.fixture
def artifact(make_llama: Callable[..., Path], make_lora: Callable[..., Path], tmp_path: Path) -> Path:
    artifacts.export(make_lora(make_llama()), tmp_path / "out", verify=False)
    return tmp_path / "out"


def test_an_untouched_artifact_passes(artifact: Path) -> None:
    report = parity.verify_files(artifact)
    assert report.passed
    assert "model.safetensors" in {file.name for file in report.files}


def test_one_changed_bit_and_a_lost_file_are_found(artifact: Path) -> None:
    weights = artifact / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (artifact / "config.json").unlink()
    report = parity.verify_files(artifact)
    assert not report.passed
    states = {file.name: file.state for file in report.files}
    assert (states["model.safetensors"], states["config.json"]) == ("changed", "missing")
    assert report.to_dict()["passed"] is False


def test_a_manifest_cannot_name_files_elsewhere(artifact: Path) -> None:
    path = artifact / "tuneserve.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(SourceError, match="outside it"):
        parity.verify_files(artifact)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--against"):
        parity.verify_files(tmp_path)
