"""Protects: one pass writes every format whole, a killed pass goes on where it was, and nothing depends on timing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tuneserve import artifacts
from tuneserve.artifacts import _execute
from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import CheckpointError

Make = Callable[..., Path]


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != artifacts.MANIFEST_FILE
    }


KILLED = """
import os, signal, sys
from tuneserve import artifacts
from tuneserve.artifacts import _execute
_execute._NOTED_EVERY = 1
real, calls = _execute._Files.{method}, 0
def dying(self, *arguments):
    global calls
    calls += 1
    if calls == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments)
_execute._Files.{method} = dying
artifacts.export(sys.argv[1], sys.argv[2], method=["merged_16bit", "fp8"], verify=False, max_shard_bytes=30_000)
"""


@pytest.mark.parametrize(("method", "after"), [("put", 1), ("put", 9), ("sync", 7), ("close", 2)])
def test_a_killed_export_resumes_to_the_same_bytes(
    method: str, after: int, make_llama: Make, make_lora: Make, tmp_path: Path
) -> None:
    adapter = make_lora(make_llama(shards=2))
    methods = ["merged_16bit", "fp8"]
    artifacts.export(adapter, tmp_path / "whole", method=methods, verify=False, max_shard_bytes=30_000)
    code = KILLED.format(method=method, after=after)
    killed = subprocess.run([sys.executable, "-c", code, str(adapter), str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    result = artifacts.export(
        adapter, tmp_path / "out", method=methods, verify=False, max_shard_bytes=30_000, resume=True
    )
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    for name in methods:
        ours, theirs = (artifacts.read_manifest(tmp_path / d / name) for d in ("out", "whole"))
        assert ours is not None
        assert theirs is not None
        assert ours["files"] == theirs["files"]
    assert result.directory == tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_resumed_pass_does_not_read_again_what_is_written(
    make_llama: Make, make_lora: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_lora(make_llama())
    code = KILLED.format(method="sync", after=9)
    subprocess.run([sys.executable, "-c", code, str(adapter), str(tmp_path / "out")], check=False)
    plan = artifacts.plan_export(adapter, method=["merged_16bit", "fp8"], max_shard_bytes=30_000)
    read = []
    plain = type(plan.model).read

    def counted(self: object, name: str) -> torch.Tensor:
        read.append(name)
        return plain(self, name)  # type: ignore[arg-type]

    monkeypatch.setattr(type(plan.model), "read", counted)
    artifacts.export(
        adapter, tmp_path / "out", method=["merged_16bit", "fp8"], verify=False, max_shard_bytes=30_000, resume=True
    )
    assert 0 < len(read) < len(plan.model.tensors)


def test_other_inputs_are_not_mixed_into_a_killed_export(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    base = make_llama()
    adapter = make_lora(base)
    code = KILLED.format(method="sync", after=9)
    subprocess.run([sys.executable, "-c", code, str(adapter), str(tmp_path / "out")], check=False)
    other = make_lora(base, "other", seed=7)
    artifacts.export(other, tmp_path / "out", verify=False, resume=True)
    artifacts.export(other, tmp_path / "whole", verify=False)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_export_is_not_made_again(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama())
    artifacts.export(adapter, tmp_path / "out", verify=False)
    before = (tmp_path / "out" / artifacts.MANIFEST_FILE).stat().st_mtime_ns
    artifacts.export(adapter, tmp_path / "out", verify=False, resume=True)
    assert (tmp_path / "out" / artifacts.MANIFEST_FILE).stat().st_mtime_ns == before


@pytest.mark.parametrize("limit", [1, 20_000, 10**9])
def test_shards_hold_whole_weights_and_no_more_than_asked(
    limit: int, make_llama: Make, make_lora: Make, tmp_path: Path
) -> None:
    base = make_llama()
    result = artifacts.export(make_lora(base), tmp_path / "out", verify=False, max_shard_bytes=limit)
    ours, before = open_checkpoint(tmp_path / "out"), open_checkpoint(base)
    assert list(ours.tensors) == list(before.tensors)
    assert len(ours.files) == len(result.plan.formats["merged_16bit"].files)
    by_file: dict[Path, list[int]] = {}
    for header in ours.tensors.values():
        by_file.setdefault(header.path, []).append(header.nbytes)
    assert all(sum(sizes) <= limit or len(sizes) == 1 for sizes in by_file.values())


def test_a_base_that_shrinks_meanwhile_is_an_error_and_leaves_nothing(
    make_llama: Make, make_lora: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_llama()
    adapter = make_lora(base)
    real = _execute._read

    def shrinking(*arguments: object) -> object:
        os.truncate(base / "model.safetensors", 5000)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_execute, "_read", shrinking)
    with pytest.raises(CheckpointError, match="truncated"):
        artifacts.export(adapter, tmp_path / "out", verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_merging_the_same_adapter_twice_is_refused(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    from tuneserve.errors import InputError

    adapter = make_lora(make_llama())
    artifacts.export(adapter, tmp_path / "merged", verify=False)
    with pytest.raises(InputError, match="already has"):
        artifacts.export(adapter, tmp_path / "out", base=tmp_path / "merged", verify=False)
