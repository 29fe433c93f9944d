"""Write a safetensors file tensor by tensor, its header first."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneserve.checkpoint._tensor import TensorSpec


class SafetensorsWriter:
    """Writes the tensors named at construction, in that order, hashing as it goes.

    Leaving the ``with`` block without an exception asserts that each was written; ``sha256`` is then the file's.
    """

    def __init__(self, path: Path, tensors: Sequence[TensorSpec]) -> None:
        self._pending = list(reversed(tensors))
        self._hash = hashlib.sha256()
        self._file = path.open("xb")
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in tensors:
            end = offset + tensor.nbytes
            header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
            offset = end
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._put(len(raw).to_bytes(8, "little"))
        self._put(raw)

    def write(self, name: str, data: memoryview) -> None:
        """Write the bytes of the next tensor (C-contiguous, little-endian)."""
        expected = self._pending.pop()
        assert name == expected.name, f"{name} written where {expected.name} was planned"
        assert data.nbytes == expected.nbytes, f"{name} has {data.nbytes} bytes, planned were {expected.nbytes}"
        self._put(data)

    @property
    def sha256(self) -> str:
        """The hash of what was written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert kind is not None or not self._pending, f"{len(self._pending)} planned tensors were not written"
