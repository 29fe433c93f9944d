"""What the first rank of a model that several devices share says to the others, and they to it at the start."""

import socket
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import torch

from tuneserve.engines._native_wire import HEADER, NotStarted
from tuneserve.native._batch import Batch

_READ_BYTES = 1 << 20


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of integers."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Array":
        """Return a tensor of the CPU as it goes over the wire."""
        values = tensor.numpy()
        return cls(values.dtype.str, values.shape, values.tobytes())

    def tensor(self) -> torch.Tensor:
        """Return the tensor."""
        return torch.from_numpy(np.frombuffer(bytearray(self.data), self.dtype).reshape(self.shape))


class PackedBatch(msgspec.Struct, frozen=True):
    """A batch, whatever it has."""

    tensors: dict[str, Array]
    others: dict[str, Any]

    @classmethod
    def of(cls, batch: Batch) -> "PackedBatch":
        """Return a batch of the CPU as it goes over the wire."""
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: Array.of(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return cls(tensors, {name: value for name, value in values.items() if name not in tensors})

    def batch(self) -> Batch:
        """Return the batch, on the CPU."""
        values: dict[str, Any] = {name: array.tensor() for name, array in self.tensors.items()}
        for name, value in self.others.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return Batch(**values)


class UseCache(msgspec.Struct, frozen=True, tag=True):
    """Make a cache of so many blocks, for so many sequences at once; the first message."""

    blocks: int
    sequences: int


class Wipe(msgspec.Struct, frozen=True, tag=True):
    """Overwrite blocks of the cache with zeros."""

    blocks: tuple[int, ...]


class Forward(msgspec.Struct, frozen=True, tag=True):
    """Run a batch."""

    batch: PackedBatch


class Logits(msgspec.Struct, frozen=True, tag=True):
    """Take so many hidden states from the first rank's broadcast, and help with their logits."""

    rows: int


class DecodeGreedily(msgspec.Struct, frozen=True, tag=True):
    """Run a batch of single tokens and the greedy steps after it."""

    batch: PackedBatch
    steps: int


class GoOnGreedily(msgspec.Struct, frozen=True, tag=True):
    """Run greedy steps after the last, with blocks as in these tables."""

    tables: Array
    steps: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The share of the model is loaded, which took ``weight_bytes``; ``free`` bytes of memory are left."""

    weight_bytes: int
    free: int


ToRank = UseCache | Wipe | Forward | Logits | DecodeGreedily | GoOnGreedily
FromRank = Loaded | NotStarted
_decoder = msgspec.msgpack.Decoder(ToRank | FromRank)


class GoneError(Exception):
    """The other end has closed the connection."""


def receive(connection: socket.socket) -> ToRank | FromRank:
    """Wait for a message.

    Raises:
        GoneError: there will be none.
        TimeoutError: there was none in the connection's time.
    """
    (length,) = HEADER.unpack(_exactly(connection, HEADER.size))
    message: ToRank | FromRank = _decoder.decode(_exactly(connection, length))
    return message


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = connection.recv(min(count - len(parts), _READ_BYTES))
        except ConnectionResetError:
            part = b""
        if not part:
            raise GoneError
        parts += part
    return bytes(parts)
