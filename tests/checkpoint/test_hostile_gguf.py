"""A GGUF header is hostile until checked: every lie is refused in one sentence, before anything is allocated for it."""

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneserve.checkpoint import open_gguf, read_rows
from tuneserve.errors import CheckpointError

HUGE = 2**63
Q4_K, F32 = 12, 0


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(name: bytes = b"a", shape: tuple[int, ...] = (8,), kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    *entries: bytes,
    keys: int = 0,
    tensors: int = 0,
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    data: int = 64,
) -> bytes:
    header = magic + version + struct.pack("<QQ", tensors, keys) + b"".join(entries)
    return header + bytes(-len(header) % 32 + data)


GOOD = gguf(
    key(b"general.architecture", 8, text(b"llama")),
    key(b"numbers", 9, array(4, 2, struct.pack("<2I", 1, 2))),
    key(b"eps", 6, struct.pack("<f", 1e-5)),
    key(b"yes", 7, b"\1"),
    tensor(),
    tensor(b"b", (2, 4), offset=32),
    keys=4,
    tensors=2,
)

LIES = {
    "empty": b"",
    "another magic": gguf(magic=b"GGML"),
    "an old version": gguf(version=struct.pack("<I", 1)),
    "big-endian": gguf(version=struct.pack(">I", 3)),
    "cut short": GOOD[:50],
    "impossible keys": gguf(keys=HUGE),
    "impossible tensors": gguf(tensors=HUGE),
    "a key of 2^63": gguf(text(b"a", HUGE), keys=1),
    "a text of 2^63": gguf(key(b"a", 8, text(b"", HUGE)), keys=1),
    "an array of 2^63": gguf(key(b"a", 9, array(4, HUGE)), keys=1),
    "an array that wraps": gguf(key(b"a", 9, array(10, HUGE // 4)), keys=1),
    "texts of 2^63": gguf(key(b"a", 9, array(8, HUGE)), keys=1),
    "an array of arrays": gguf(key(b"a", 9, array(9, 1, array(4, 0))), keys=1),
    "an unknown type of value": gguf(key(b"a", 13, bytes(8)), keys=1),
    "an unknown type of element": gguf(key(b"a", 9, array(99, 1, bytes(8))), keys=1),
    "a flag of 2": gguf(key(b"a", 7, b"\2"), keys=1),
    "no UTF-8": gguf(key(b"a", 8, text(b"\xff\xfe")), keys=1),
    "a key twice": gguf(key(b"a", 4, bytes(4)), key(b"a", 4, bytes(4)), keys=2),
    "alignment 0": gguf(key(b"general.alignment", 4, bytes(4)), keys=1),
    "alignment 3": gguf(key(b"general.alignment", 4, struct.pack("<I", 3)), keys=1),
    "alignment as text": gguf(key(b"general.alignment", 8, text(b"32")), keys=1),
    "a tensor twice": gguf(tensor(), tensor(offset=32), tensors=2),
    "a long name": gguf(tensor(b"a" * 65), tensors=1),
    "five dimensions": gguf(tensor(shape=(2, 1, 1, 1, 1)), tensors=1),
    "2^32 dimensions": gguf(text(b"a") + struct.pack("<I", 2**32 - 1), tensors=1, data=200),
    "no dimension": gguf(tensor(shape=()), tensors=1),
    "an empty dimension": gguf(tensor(shape=(8, 0)), tensors=1),
    "a size that overflows": gguf(tensor(shape=(2**16, 2**47, 2**47)), tensors=1),
    "an unknown type": gguf(tensor(kind=999), tensors=1),
    "integers": gguf(tensor(kind=26), tensors=1),
    "a broken block": gguf(tensor(kind=Q4_K), tensors=1),
    "unaligned": gguf(tensor(shape=(2,), offset=4), tensors=1),
    "past the end": gguf(tensor(offset=64), tensors=1),
    "far past the end": gguf(tensor(offset=2**64 - 32), tensors=1),
    "overlapping": gguf(tensor(shape=(16,)), tensor(b"b", offset=32), tensors=2),
    "the same place": gguf(tensor(), tensor(b"b"), tensors=2),
}


def test_a_good_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)
    file = open_gguf(path)
    assert file.metadata == {"general.architecture": "llama", "numbers": [1, 2], "eps": 1e-5, "yes": True}
    assert [(t.name, t.kind, t.shape) for t in file.tensors.values()] == [("a", "F32", (8,)), ("b", "F32", (4, 2))]


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_before_memory_is_taken_for_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(LIES[name])
    open_good = tmp_path / "good.gguf"
    open_good.write_bytes(GOOD)
    open_gguf(open_good)  # imports what it needs
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"is not a complete GGUF file: .*; download it again\.$"):
            open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [key(b"split.count", 6, struct.pack("<f", 2)), key(b"split.count", 8, text(b"2"))])
@pytest.mark.parametrize("number", [key(b"split.no", 8, text(b"0")), key(b"split.no", 9, array(4, 0))])
def test_a_part_whose_place_is_no_number_is_refused(tmp_path: Path, count: bytes, number: bytes) -> None:
    path = tmp_path / "model-00001-of-00002.gguf"
    for keys in ([count], [key(b"split.count", 4, struct.pack("<I", 2)), number]):
        path.write_bytes(gguf(*keys, tensor(), keys=len(keys), tensors=1))
        with pytest.raises(CheckpointError, match="which of how many parts"):
            open_gguf(path)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path("/dev/zero"), tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(CheckpointError):
            open_gguf(path)


def test_a_file_that_shrinks_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)
    file = open_gguf(path)
    os.truncate(path, len(GOOD) - 32)
    with pytest.raises(CheckpointError, match="was truncated"):
        list(read_rows(file.tensors["b"], 0, 4))


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.integers(0, len(GOOD)),
)
def test_any_damage_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], end: int
) -> None:
    raw = bytearray(GOOD)
    for position, value in changes:
        raw[position] = value
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    path.write_bytes(raw[:end])
    with contextlib.suppress(CheckpointError):
        for found in open_gguf(path).tensors.values():
            for _, values in read_rows(found, 0, 1):
                assert values.dtype == np.float32
