"""A safetensors header is hostile until checked: every lie is refused in one sentence, quickly."""

import contextlib
import json
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tuneserve.checkpoint import open_checkpoint, open_safetensors, read_headers
from tuneserve.errors import CheckpointError

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def _write(path: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def _entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**GOOD["a"], **changes}}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not json", bytes(8)),
        (b"[" * 100_000, bytes(8)),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}', bytes(8)),
        (b'{"a": {"dtype": "F32", "dtype": "U8", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        (json.dumps(GOOD).encode("utf-16"), bytes(8)),
        (b'{"\xff": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        (b'{"\xed\xa0\x80": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        ({"x" * 1001: GOOD["a"]}, bytes(8)),
        ({**GOOD, "__metadata__": 3}, bytes(8)),
        ({**GOOD, "__metadata__": {"format": {"deep": []}}}, bytes(8)),
        ([], bytes(8)),
        ({"a": 1}, bytes(8)),
        (_entry(dtype="F33"), bytes(8)),
        (_entry(dtype=["F32"]), bytes(8)),
        (_entry(shape=[-2]), bytes(8)),
        (_entry(shape=[2.0]), bytes(8)),
        (_entry(shape=[True, 2]), bytes(8)),
        (_entry(shape=[2**62, 2**62]), bytes(8)),
        (_entry(shape=[1] * 1000 + [2]), bytes(8)),
        (_entry(shape=[0, 2**47, 2**47], data_offsets=[0, 0]), b""),
        (_entry(shape=[10**400]), bytes(8)),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 8]}}', bytes(8)),
        (_entry(shape=[float("nan")]), bytes(8)),
        (_entry(shape=None), bytes(8)),
        (_entry(data_offsets=[8, 0]), bytes(8)),
        (_entry(data_offsets=[0, 2**63]), bytes(8)),
        (_entry(data_offsets=[-8, 0]), bytes(8)),
        (_entry(data_offsets=[0]), bytes(8)),
        (_entry(shape=[3]), bytes(8)),
        (GOOD, bytes(7)),
        (GOOD, bytes(9)),
        ({**GOOD, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        ({**GOOD, "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, bytes(20)),
        ({**GOOD, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        (_entry(dtype="F4", shape=[3], data_offsets=[0, 1]), bytes(1)),
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    path = _write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_headers(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 10_000])
def test_a_header_longer_than_the_file_is_refused_without_reading_it(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match="fewer than its header says"):
        read_headers(_write(tmp_path / "x.safetensors", GOOD, length=length))


def test_a_header_over_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.safetensors", GOOD, length=200_000_000)
    os.truncate(path, 300_000_000)
    with pytest.raises(CheckpointError, match="over the format's limit"):
        read_headers(path)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_files_too_short_for_a_header_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_headers(path)


HOSTILE_JSON = {
    "millions of tensors": b'{"t":' + b"[0]," * 700_000 + b"0}",
    "millions of keys": b"{" + b",".join(b'"%d":0' % number for number in range(1_000_001)) + b"}",
    "a shape of millions": b'{"a":{"dtype":"F32","shape":[' + b"1," * 2_000_000 + b'1],"data_offsets":[0,4]}}',
    "deep objects": b'{"a":' * 100_000 + b"0" + b"}" * 100_000,
    "deep lists": b"[" * 1_000_000,
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Hold the test to 600 MB more address space than the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", HOSTILE_JSON)
@pytest.mark.usefixtures("little_memory")
def test_headers_and_indexes_of_millions_are_refused_in_little_memory(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match="no usable JSON"):
        read_headers(_write(tmp_path / "x.safetensors", HOSTILE_JSON[kind]))
    (tmp_path / "model.safetensors.index.json").write_bytes(b'{"weight_map":' + HOSTILE_JSON[kind] + b"}")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(tmp_path)


@pytest.mark.usefixtures("little_memory")
def test_the_most_tensors_that_are_read_fit_in_little_memory(tmp_path: Path) -> None:
    count = 100_000
    header = ",".join(
        f'"model.layers.{i}.weight":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count)
    )
    assert len(read_headers(_write(tmp_path / "x.safetensors", f"{{{header}}}".encode(), b""))) == count


@pytest.mark.usefixtures("little_memory")
def test_a_tensor_larger_than_memory_is_a_typed_error(tmp_path: Path) -> None:
    size = 2**40
    path = _write(tmp_path / "x.safetensors", _entry(dtype="U8", shape=[size], data_offsets=[0, size]), b"")
    os.truncate(path, path.stat().st_size + size)
    with pytest.raises(CheckpointError, match="more than this machine's memory"):
        open_safetensors(path).read("a")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero"), tmp_path / "missing"):
        with pytest.raises(CheckpointError):
            read_headers(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", len(content) // 2) + content)
    with contextlib.suppress(CheckpointError):
        read_headers(path)


def test_every_truncation_of_a_good_file_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}, good)
    content = good.read_bytes()
    for length in range(len(content)):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_headers(cut)


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    checkpoint = open_safetensors(path)
    os.truncate(path, 200)
    with pytest.raises(CheckpointError, match="truncated while it was read"):
        checkpoint.read("a")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors", "../../x", "/etc/passwd", "a/b.safetensors", "x\0y", "", ".", "..", "./x.safetensors",
        "\ud800.safetensors", "x\n.safetensors", "x" * 256, "x" * 1_000_000, "/dev/zero",
    ],
)  # fmt: skip
def test_an_index_may_only_name_files_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("target", ["../elsewhere.safetensors", "/dev/zero", "/etc/passwd"])
def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, target: str, sharded: bool) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "elsewhere.safetensors")
    model = tmp_path / "model"
    model.mkdir()
    (model / ("shard.safetensors" if sharded else "model.safetensors")).symlink_to(target)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    with pytest.raises(CheckpointError, match="links out"):
        open_checkpoint(model)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_pipes_and_loops_in_the_place_of_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / name)
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / name).symlink_to(name)
    (tmp_path / "folder" / name).mkdir(parents=True)
    for directory in ("pipe", "loop", "folder"):
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / directory)


def test_an_index_that_is_a_device_or_huge_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(tmp_path)
    index.unlink()
    index.touch()
    os.truncate(index, 100_000_001)
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(tmp_path)


def test_reading_touches_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0o400)
    tmp_path.chmod(0o500)
    before = {path: path.stat() for path in (tmp_path, tmp_path / "model.safetensors")}
    open_checkpoint(tmp_path).read("a")
    tmp_path.chmod(0o700)
    for path, status in before.items():
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (status.st_mtime_ns, status.st_size)


def test_the_hub_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(2)}, blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert open_checkpoint(snapshot).read("a").tolist() == [1, 1]


@pytest.mark.parametrize(
    "index",
    [
        b"", b"{}", b"[]", b"nope", b'{"weight_map": {}}', b'{"weight_map": {"a": 3}}', b'{"weight_map": ["a"]}',
        b'{"weight_map": {"a": "x", "a": "y"}}', b'{"weight_map": {"\xff": "x"}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_malformed_index_is_refused(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(tmp_path)


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*never loaded"):
        open_checkpoint(tmp_path)


def test_shards_must_hold_what_the_index_names_and_nothing_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(CheckpointError, match="no shard holds, 'b' first"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "x": "two.safetensors"}}))
    with pytest.raises(CheckpointError, match="repeats 'a'"):
        open_checkpoint(tmp_path)
