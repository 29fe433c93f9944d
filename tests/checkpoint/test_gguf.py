"""GGUF tensors have the values that the gguf package gives them, whatever their type; parts of a split model belong."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from tuneserve.checkpoint import _gguf_blocks, open_gguf, read_rows
from tuneserve.errors import CheckpointError

KINDS = [kind for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits or kind.name in ("F32", "F16")]


def _bytes(kind: gguf.GGMLQuantizationType, rows: int, columns: int) -> np.ndarray:
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (rows, columns // elements * nbytes), dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the package's own, for scales made of random bytes
def test_every_type_has_the_values_of_the_gguf_package(
    tmp_path: Path, kind: gguf.GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gguf_blocks, "_SLAB_VALUES", 2048)
    raw = _bytes(kind, 10, 512)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("first", np.ones(7, np.float32))
    writer.add_tensor("weight", raw, raw_dtype=kind)
    _write(writer)

    tensor = open_gguf(tmp_path / "model.gguf").tensors["weight"]
    assert tensor.shape == (10, 512)
    slabs = list(read_rows(tensor, 1, 9))
    assert [first for first, _ in slabs] == [0, 4, 8]
    expected = gguf.quants.dequantize(raw[1:], kind).astype(np.float32)
    assert np.array_equal(np.concatenate([values for _, values in slabs]), expected, equal_nan=True)


def _split(directory: Path) -> list[Path]:
    writer = gguf.GGUFWriter(directory / "m.gguf", "llama", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"t{index}", np.full(8, index, np.float32))
    _write(writer)
    return sorted(directory.glob("m-*.gguf"))


def test_the_parts_of_a_split_model_are_one(tmp_path: Path) -> None:
    paths = _split(tmp_path)
    file = open_gguf(paths[0])
    assert file.paths == tuple(paths) and len(paths) > 2
    assert {name: next(read_rows(t, 0, 1))[1][0, 0] for name, t in file.tensors.items()} == {
        f"t{index}": index for index in range(5)
    }


def test_parts_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    paths = _split(tmp_path)
    with pytest.raises(CheckpointError, match="not the first part"):
        open_gguf(paths[1])
    renamed = tmp_path / "model.gguf"
    renamed.write_bytes(paths[0].read_bytes())
    with pytest.raises(CheckpointError, match="not named as such"):
        open_gguf(renamed)
    third = paths[2].read_bytes()
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(CheckpointError, match="is not part 3 of"):
        open_gguf(paths[0])
    paths[2].write_bytes(third)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_gguf(paths[0])


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
