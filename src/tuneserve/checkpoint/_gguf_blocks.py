"""The types of GGUF tensors, and their values as float32."""

import os
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from tuneserve.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tuneserve.checkpoint._gguf import GgufTensor

# Dequantising takes several times this many float32 values in memory.
_SLAB_VALUES = 1 << 20


@cache
def _blocks() -> dict[int, tuple[str, int, int]]:
    from gguf.constants import GGML_QUANT_SIZES

    integers = ("I8", "I16", "I32", "I64", "F64")
    return {
        int(kind): (kind.name, elements, nbytes)
        for kind, (elements, nbytes) in GGML_QUANT_SIZES.items()
        if kind.name not in integers
    }


def block_of(number: int) -> tuple[str, int, int] | None:
    """Return the name of the type ``number``, and the values and bytes of one block; None if it holds no weights."""
    return _blocks().get(number)


def read_rows(tensor: "GgufTensor", first: int, count: int) -> "Iterator[tuple[int, npt.NDArray[np.float32]]]":
    """Yield ``count`` rows (all dimensions but the last flattened) from ``first`` on, in slabs of bounded size.

    Each slab comes with the number of its first row, counted from ``first``, and has the shape (rows, columns).

    Raises:
        CheckpointError: the file has become shorter than its header said, or the type cannot be dequantised.
    """
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[tensor.kind]
    columns = tensor.shape[-1]
    _, elements, nbytes = _blocks()[int(kind)]
    row_bytes = columns // elements * nbytes
    at_once = max(1, _SLAB_VALUES // columns)
    with tensor.path.open("rb", buffering=0) as file:
        for start in range(0, count, at_once):
            rows = min(at_once, count - start)
            raw = np.empty(rows * row_bytes, np.uint8)
            _fill(file.fileno(), raw.data, tensor, tensor.offset + (first + start) * row_bytes)
            try:
                # Scales of a stranger's may be infinite or not a number; that is checked in the result.
                with np.errstate(all="ignore"):
                    values = dequantize(raw.reshape(rows, row_bytes), kind)
            except NotImplementedError:
                raise CheckpointError(
                    f"{tensor.name} in {tensor.path} is of the type {tensor.kind}, which cannot be dequantised; "
                    "use a file of another type."
                ) from None
            yield start, values.astype(np.float32, copy=False).reshape(rows, columns)


def raw_rows(tensor: "GgufTensor", first: int, count: int) -> "npt.NDArray[np.uint8]":
    """Return the bytes of ``count`` rows from ``first`` on, (rows, bytes of a row).

    Raises:
        CheckpointError: the file has become shorter than its header said.
    """
    import numpy as np
    from gguf.constants import GGMLQuantizationType

    _, elements, nbytes = _blocks()[int(GGMLQuantizationType[tensor.kind])]
    raw = np.empty((count, tensor.shape[-1] // elements * nbytes), np.uint8)
    with tensor.path.open("rb", buffering=0) as file:
        _fill(file.fileno(), raw.reshape(-1).data, tensor, tensor.offset + first * raw.shape[1])
    return raw


def _fill(descriptor: int, view: memoryview, tensor: "GgufTensor", offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise CheckpointError(f"{tensor.path} was truncated while it was read; download it again.")
        done += count
