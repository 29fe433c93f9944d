"""The header of one safetensors file, checked before a byte of data is read.

Format: https://huggingface.co/docs/safetensors, "Format".
"""

import math
import os
import stat
from pathlib import Path
from typing import Any

from tuneserve.checkpoint._json import strict_json
from tuneserve.checkpoint._tensor import DTYPE_BITS, TensorHeader
from tuneserve.errors import CheckpointError

# The reference implementation refuses larger headers too.
MAX_HEADER_BYTES = 100_000_000
_MAX_NAME = 1000


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Return the tensors of the safetensors file at ``path`` in the order of their data.

    Raises:
        CheckpointError: the file is missing, not regular, truncated, or its header breaks the format: unknown dtype,
            shape and size that disagree, offsets that overlap, leave a hole or pass the end, duplicate names.
    """
    try:
        return _checked_headers(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions."
        ) from None
    except _MalformedError as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}; download or save it again."
        ) from None


class _MalformedError(Exception):
    pass


def _checked_headers(path: Path) -> dict[str, TensorHeader]:
    # O_NONBLOCK, so that opening a named pipe does not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _MalformedError("it is not a regular file")
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > status.st_size - 8:
            raise _MalformedError(f"it has {status.st_size} bytes, fewer than its header says")
        if length > MAX_HEADER_BYTES:
            raise _MalformedError(f"its header claims {length} bytes, over the format's limit of {MAX_HEADER_BYTES}")
        raw = file.read(length)
    try:
        header = strict_json(raw)
    except ValueError as error:
        raise _MalformedError(f"its header is no usable JSON ({str(error)[:100]})") from None
    if not isinstance(header, dict):
        raise _MalformedError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _MalformedError("its metadata is not text")

    start = 8 + length
    tensors = [_tensor(name, entry, path, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise _MalformedError(f"the data of {tensor.name!r} overlaps another tensor's or leaves a hole")
        end += tensor.nbytes
    if end != status.st_size:
        raise _MalformedError(f"its tensors end at byte {end} but the file has {status.st_size}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(name: str, entry: Any, path: Path, start: int) -> TensorHeader:
    if len(name) > _MAX_NAME:
        raise _MalformedError(f"the name {name[:40]!r}... has {len(name)} characters")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _MalformedError(f"the header entry of {name!r} is malformed")
    if dtype not in DTYPE_BITS:
        raise _MalformedError(f"{name!r} has the unknown dtype {dtype[:40]!r}")
    sizes = all(type(size) is int and 0 <= size < 2**48 for size in shape)
    # The product without zeros, as strides are computed from those of an empty tensor too.
    if len(shape) > 16 or not sizes or math.prod(size or 1 for size in shape) >= 2**60:
        raise _MalformedError(f"{name!r} has an impossible shape")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or not 0 <= begin <= end or end - begin != bits // 8:
        raise _MalformedError(f"the size of {name!r} does not match its shape and dtype")
    return TensorHeader(name, dtype, tuple(shape), path, start + begin)
