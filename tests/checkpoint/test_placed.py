"""Protects: a file written in pieces, in any order or over several runs, is hashed as what is on the disk."""

import random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tuneserve.checkpoint import PlacedFile


@given(
    sizes=st.lists(st.integers(1, 6000), min_size=1, max_size=12),
    gap=st.sampled_from([0, 7, 5000]),
    seed=st.integers(0, 2**32),
    in_order=st.booleans(),
    kept=st.booleans(),
)
def test_the_hash_is_that_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], gap: int, seed: int, in_order: bool, kept: bool
) -> None:
    path = tmp_path_factory.mktemp("placed") / "file"
    source = random.Random(seed)
    pieces, offset = [], 0
    for size in sizes:
        pieces.append((offset, source.randbytes(size)))
        offset += size + gap
    expected = bytearray(offset)
    for start, data in pieces:
        expected[start : start + len(data)] = data
    if not in_order:
        source.shuffle(pieces)
    first, rest = (pieces[:1], pieces[1:]) if kept else ([], pieces)
    if first:
        file = PlacedFile(path, offset)
        file.put(first[0][0], memoryview(first[0][1]))
        file.discard()
    file = PlacedFile(path, offset, kept=first[0][0] + len(first[0][1]) if first else 0)
    for start, data in rest:
        file.put(start, memoryview(data))
    assert file.close() == blake3(expected).hexdigest()
    assert path.read_bytes() == expected
