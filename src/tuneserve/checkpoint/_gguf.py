"""The header of a GGUF file, checked before a byte of data is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length in it is a stranger's: each is
compared with what the file can hold before anything is allocated for it.
"""

import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tuneserve.checkpoint._gguf_blocks import block_of
from tuneserve.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000
_MAX_VALUES = 3_000_000
_MAX_COLUMNS = 1 << 24
_MAX_KEY, _MAX_NAME, _MAX_DIMENSIONS = 65_535, 64, 4
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies: ``kind`` is ggml's name of its type ("Q4_K"), ``shape`` is outermost dimension first."""

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """A model's metadata and tensors; ``digest`` is the sha256 of all headers, in hexadecimal.

    Strings are ``str``, arrays ``list``; a number is Python's, a single float32 the shortest decimal that gives it.
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    digest: str


def open_gguf(path: Path) -> GgufFile:
    """Read the header of the GGUF file at ``path``; where that is the first of several, the headers of all.

    Raises:
        CheckpointError: the file is missing, not regular, truncated, big-endian or of an unknown version, or its header
            breaks the format: impossible counts and lengths, nested arrays, unknown types, duplicate names, data that
            is unaligned, overlaps or passes the end; or a part of a split model is missing or of another model.
    """
    metadata, tensors, digest = _header(path)
    count, first = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if count in (0, 1):
        return GgufFile((path,), metadata, tensors, digest)
    if type(count) is not int or type(first) is not int:
        raise CheckpointError(f"{path} does not say which of how many parts it is; download it again.")
    paths = _split_paths(path, first, count)
    digests = [digest]
    for place, part in enumerate(paths[1:], start=1):
        theirs, more, digest = _header(part)
        if (theirs.get("split.no"), theirs.get("split.count")) != (place, count):
            raise CheckpointError(f"{part} is not part {place + 1} of {count} of {path.name}; download it again.")
        if twice := tensors.keys() & more.keys():
            raise CheckpointError(f"{part} repeats {min(twice)!r} from another part; download the model again.")
        tensors |= more
        digests.append(digest)
    if metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise CheckpointError(f"the parts of {path} do not hold all of its tensors; download the model again.")
    return GgufFile(paths, metadata, tensors, hashlib.sha256("".join(digests).encode()).hexdigest())


class _MalformedError(Exception):
    pass


def _split_paths(path: Path, place: int, count: int) -> tuple[Path, ...]:
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or int(match["number"]) != place + 1:
        raise CheckpointError(f"{path} is one of {count} parts but not named as such; give the parts their names back.")
    if place != 0:
        raise CheckpointError(f"{path} is not the first part of its model; name {match['stem']}-00001-of-... instead.")
    return tuple(path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1))


def _header(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor], str]:
    try:
        # O_NONBLOCK, so that opening a named pipe does not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _MalformedError("it is not a regular file")
            return _Parser(file, status.st_size, path).parse()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions."
        ) from None
    except _MalformedError as error:
        raise CheckpointError(f"{path} is not a complete GGUF file: {error}; download it again.") from None


class _Parser:
    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file, self._size, self._path = file, size, path
        self._position = 0
        self._values = 0
        self._hash = hashlib.sha256()

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor], str]:
        if self._take(4) != b"GGUF":
            raise _MalformedError("it does not begin with the letters GGUF")
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise _MalformedError("it is big-endian, which is not read here")
        if version not in (2, 3):
            raise _MalformedError(f"its version is {version}, not 2 or 3")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        # The smallest tensor takes 32 bytes of the header, the smallest key 13.
        if tensor_count * 32 + key_count * 13 > min(self._size, _MAX_HEADER_BYTES):
            raise _MalformedError(f"it claims {tensor_count} tensors and {key_count} keys")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string(_MAX_KEY)
            if key in metadata:
                raise _MalformedError(f"it has the key {key[:100]!r} twice")
            metadata[key] = self._value(self._number("I"), key)
        entries = [self._entry() for _ in range(tensor_count)]
        return metadata, self._placed(entries, _alignment(metadata)), self._hash.hexdigest()

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(_MAX_NAME)
        dimensions = self._number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise _MalformedError(f"{name!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return name, shape[::-1], self._number("I"), self._number("Q")

    def _placed(self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, GgufTensor]:
        start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, number, offset in sorted(entries, key=lambda entry: entry[3]):
            if name in tensors:
                raise _MalformedError(f"it has the tensor {name!r} twice")
            if (block := block_of(number)) is None:
                raise _MalformedError(f"{name!r} is of the unknown type {number}")
            kind, elements, nbytes = block
            if not all(0 < size < 2**48 for size in shape) or not 0 < (shape or (0,))[-1] <= _MAX_COLUMNS:
                raise _MalformedError(f"{name!r} has an impossible shape")
            if shape[-1] % elements:
                raise _MalformedError(f"{name!r} does not divide into blocks of the type {kind}")
            if offset % alignment:
                raise _MalformedError(f"the data of {name!r} is not aligned")
            tensor = GgufTensor(name, kind, shape, math.prod(shape) // elements * nbytes, self._path, start + offset)
            if tensor.offset + tensor.nbytes > self._size:
                raise _MalformedError(f"the data of {name!r} passes the end of the file")
            previous = next(reversed(tensors.values()), None)
            if previous is not None and tensor.offset < previous.offset + previous.nbytes:
                raise _MalformedError(f"the data of {name!r} overlaps that of {previous.name!r}")
            tensors[name] = tensor
        return tensors

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(self._size)
        if kind != _ARRAY:
            value = self._scalars(kind, 1, key)[0]
            return _shortest(value) if kind == _FLOAT32 else value
        kind, count = self._number("I"), self._number("Q")
        if kind == _ARRAY:
            raise _MalformedError(f"{key!r} is an array of arrays")
        if kind != _STRING:
            return self._scalars(kind, count, key)
        self._count(count, 8, key)
        return [self._string(self._size) for _ in range(count)]

    def _scalars(self, kind: int, count: int, key: str) -> list[Any]:
        if (code := _SCALARS.get(kind)) is None:
            raise _MalformedError(f"{key[:100]!r} is of the unknown type {kind}")
        width = struct.calcsize(code)
        self._count(count, width, key)
        values = list(struct.unpack(f"<{count}{code}", self._take(count * width)))
        if kind == _BOOL:
            if not all(value in (0, 1) for value in values):
                raise _MalformedError(f"{key[:100]!r} is neither true nor false")
            return [bool(value) for value in values]
        return values

    def _count(self, count: int, width: int, key: str) -> None:
        self._values += count
        if self._values > _MAX_VALUES or count * width > self._size - self._position:
            raise _MalformedError(f"{key[:100]!r} claims {count} values")

    def _string(self, limit: int) -> str:
        length = self._number("Q")
        if length > limit:
            raise _MalformedError(f"a name or text in its header claims {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise _MalformedError("a text in its header is not UTF-8") from None

    def _number(self, code: str) -> int:
        number: int = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]
        return number

    def _take(self, count: int) -> bytes:
        if count > self._size - self._position:
            raise _MalformedError("it ends within its header")
        if self._position + count > _MAX_HEADER_BYTES:
            raise _MalformedError(f"its header is longer than {_MAX_HEADER_BYTES} bytes")
        data = self._file.read(count)
        if len(data) != count:
            raise _MalformedError("it ends within its header")
        self._position += count
        self._hash.update(data)
        return data


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise _MalformedError("general.alignment is not a power of two")
    return alignment


def _shortest(value: float) -> float:
    """Undo the widening of a float32: 9.999999747378752e-06 was written as 1e-05."""
    if not math.isfinite(value):
        return value
    digits = 6
    while struct.pack("<f", float(f"{value:.{digits}g}")) != struct.pack("<f", value):
        digits += 1
    return float(f"{value:.{digits}g}")
