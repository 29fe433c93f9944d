"""The head of a GGUF file, version 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuneserve.artifacts.gguf._types import tensor_bytes, tensor_type

ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
Value = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]
"""A number is written as uint32 or float32, numbers in a sequence as int32 or float32."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's GGUF name, type ("Q4_K") and shape, outermost dimension first; ``offset`` is from the file's start."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return tensor_bytes(self.type, self.shape)


def lay_out(
    metadata: Mapping[str, Value], tensors: Iterable[StoredTensor]
) -> tuple[bytes, tuple[StoredTensor, ...], int]:
    """Return the head, padded to where the data begins; the tensors with their offsets; and the size of the file."""
    placed: list[StoredTensor] = []
    position = 0
    for tensor in tensors:
        placed.append(StoredTensor(tensor.name, tensor.type, tensor.shape, position))
        position += _aligned(tensor.nbytes)
    head = b"".join(
        [
            struct.pack("<4sIQQ", b"GGUF", 3, len(placed), len(metadata)),
            *(_string(key) + _typed(value) for key, value in metadata.items()),
            *map(_info, placed),
        ]
    )
    head += bytes(_aligned(len(head)) - len(head))
    moved = [StoredTensor(t.name, t.type, t.shape, len(head) + t.offset) for t in placed]
    return head, tuple(moved), len(head) + position


def _info(tensor: StoredTensor) -> bytes:
    dimensions = tuple(reversed(tensor.shape))
    count = len(dimensions)
    packed = struct.pack(f"<I{count}QIQ", count, *dimensions, tensor_type(tensor.type).number, tensor.offset)
    return _string(tensor.name) + packed


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return _array(value)


def _array(values: Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]) -> bytes:
    assert values
    kind, code = {bool: (_BOOL, "?"), int: (_INT32, "i"), float: (_FLOAT32, "f"), str: (_STRING, "")}[type(values[0])]
    head = struct.pack("<IIQ", _ARRAY, kind, len(values))
    if kind == _STRING:
        return head + b"".join(_string(str(text)) for text in values)
    return head + struct.pack(f"<{len(values)}{code}", *values)
