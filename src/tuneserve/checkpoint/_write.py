"""Write a safetensors file tensor by tensor, its header first."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneserve.checkpoint._tensor import TensorSpec


def safetensors_header(tensors: Sequence[TensorSpec]) -> bytes:
    """Return what stands before the data of a safetensors file that holds ``tensors`` in this order, without gaps.

    Format: https://huggingface.co/docs/safetensors, "Format".
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


class SafetensorsWriter:
    """Writes the tensors named at construction, in that order.

    Leaving the ``with`` block without an exception asserts that each was written.
    """

    def __init__(self, path: Path, tensors: Sequence[TensorSpec]) -> None:
        self._pending = list(reversed(tensors))
        self._file = path.open("xb")
        self._file.write(safetensors_header(tensors))

    def write(self, name: str, data: memoryview) -> None:
        """Write the bytes of the next tensor (C-contiguous, little-endian)."""
        expected = self._pending.pop()
        assert name == expected.name, f"{name} written where {expected.name} was planned"
        assert data.nbytes == expected.nbytes, f"{name} has {data.nbytes} bytes, planned were {expected.nbytes}"
        self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert kind is not None or not self._pending, f"{len(self._pending)} planned tensors were not written"
