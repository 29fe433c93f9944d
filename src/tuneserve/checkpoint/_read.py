"""A checkpoint directory as a mapping of tensors that are read one at a time."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.checkpoint._json import strict_json
from tuneserve.checkpoint._safetensors import read_headers
from tuneserve.checkpoint._tensor import TensorHeader, TensorSpec
from tuneserve.errors import CheckpointError

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000
_MAX_TENSORS = 1_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one or several safetensors files, in file order."""

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorHeader]

    def read(self, name: str) -> "torch.Tensor":
        """Read one tensor into memory of its own (CPU, the file's dtype).

        Plain reads rather than a memory map: a file that shrinks meanwhile is an error instead of a crash, and resident
        memory stays at one tensor.

        Raises:
            CheckpointError: the file has become shorter than its header said, it is larger than memory, or PyTorch
                lacks the dtype.
        """
        header = self.tensors[name]
        return _read_at(header, header.offset, header.shape)

    def read_rows(self, name: str, start: int, stop: int) -> "torch.Tensor":
        """Read ``[start:stop]`` of the rows of one tensor, all dimensions but its last taken as one.

        Returns:
            shape ``[stop - start, size of the last dimension]``; errors as in :meth:`read`.
        """
        header = self.tensors[name]
        *rows, columns = header.shape
        assert 0 <= start <= stop <= math.prod(rows), f"rows {start} to {stop} of {header.shape}"
        row_bytes = TensorSpec(name, header.dtype, (columns,)).nbytes
        return _read_at(header, header.offset + start * row_bytes, (stop - start, columns))


def open_safetensors(path: Path) -> Checkpoint:
    """Open a single safetensors file."""
    return Checkpoint((path,), read_headers(path))


def open_checkpoint(directory: Path) -> Checkpoint:
    """Open the weights of a model directory: ``model.safetensors``, or the shards its index names.

    Raises:
        CheckpointError: there are no safetensors weights (pickled ones are never loaded), the index is malformed, names
            a file outside the directory or a tensor that no shard holds, or a file is malformed.
    """
    if (directory / SINGLE_FILE).exists():
        files = [SINGLE_FILE]
        expected: set[str] = set()
    elif (directory / INDEX_FILE).exists():
        weight_map = _read_index(directory / INDEX_FILE)
        files = sorted(set(weight_map.values()))
        expected = set(weight_map)
    else:
        raise CheckpointError(_no_weights(directory))

    tensors: dict[str, TensorHeader] = {}
    paths = [_inside(directory, name) for name in files]
    for path in paths:
        headers = read_headers(path)
        if twice := tensors.keys() & headers.keys():
            raise CheckpointError(f"{path} repeats {min(twice)!r} from another shard; download the model again.")
        tensors.update(headers)
        if len(tensors) > _MAX_TENSORS:
            raise CheckpointError(
                f"{directory} has over {_MAX_TENSORS} tensors, more than any model; check what it is."
            )
    if missing := expected - tensors.keys():
        raise CheckpointError(
            f"{directory / INDEX_FILE} names {len(missing)} tensors that no shard holds, {min(missing)!r} first; "
            "download the model again."
        )
    return Checkpoint(tuple(paths), tensors)


def _read_index(path: Path) -> dict[str, str]:
    bad = CheckpointError(f"{path} is not a safetensors index (a JSON object with weight_map); download it again.")
    try:
        if not path.is_file() or path.stat().st_size > _MAX_INDEX_BYTES:
            raise bad
        index: Any = strict_json(path.read_bytes())
    except (ValueError, OSError):
        raise bad from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise bad
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise bad
    return weight_map


def _inside(directory: Path, name: str) -> Path:
    """Return the path of the file ``name`` of the directory, which may only link into the hub cache's own blobs."""
    path = directory / name
    if not name.isprintable() or not 0 < len(name) < 256 or Path(name).name != name or name == "..":
        raise CheckpointError(
            f"{directory / INDEX_FILE} names {name[:100]!r}, which is not a file beside it; fix the index."
        )
    home = directory.resolve()
    target = path.resolve()
    blobs = home.parent.parent / "blobs"
    if target.parent != home and not (home.parent.name == "snapshots" and target.parent == blobs):
        raise CheckpointError(f"{path} links out of its directory; copy the file there instead.")
    return path


def _no_weights(directory: Path) -> str:
    try:
        pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    except OSError as error:
        return f"{directory} cannot be read ({error.strerror}); check the path and its permissions."
    if pickles:
        return (
            f"{directory} has only pickled weights ({pickles[0]}), which are never loaded because they can run code; "
            "save them as safetensors."
        )
    return f"{directory} has no {SINGLE_FILE} and no {INDEX_FILE}; point to a directory with the model's weights."


def _read_at(header: TensorHeader, offset: int, shape: tuple[int, ...]) -> "torch.Tensor":
    import torch

    dtype = torch_dtype(header.dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    try:
        buffer = torch.empty(nbytes, dtype=torch.uint8)
    except RuntimeError:
        raise CheckpointError(
            f"{header.name[:100]!r} in {header.path} has {nbytes} bytes, more than this machine's memory; "
            "use a machine with more."
        ) from None
    view = buffer.numpy().data
    with header.path.open("rb", buffering=0) as file:
        done = 0
        while done < nbytes:
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{header.path} was truncated while it was read; download or save it again.")
            done += count
    return buffer.view(dtype).view(shape)


def torch_dtype(name: str) -> "torch.dtype":
    """Return PyTorch's dtype for safetensors' name of it.

    Raises:
        CheckpointError: PyTorch has none.
    """
    import torch

    known = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    }  # fmt: skip
    if name not in known:
        raise CheckpointError(f"tensors of dtype {name} cannot be read; convert the checkpoint to BF16 or F16.")
    return known[name]
