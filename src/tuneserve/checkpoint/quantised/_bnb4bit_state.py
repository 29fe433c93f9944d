"""The ``quant_state`` tensor that bitsandbytes stores beside each 4-bit weight: JSON as bytes."""

import math
from dataclasses import dataclass
from typing import Any

from tuneserve.checkpoint._json import strict_json
from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint.quantised._codes4 import CODES
from tuneserve.checkpoint.quantised._dequantising import DTYPES, malformed

QUANT_STATE = ".quant_state.bitsandbytes__"
_MAX_BYTES = 4096
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Nested:
    """How the scales were quantised: in blocks of ``block_size``, after ``offset`` was taken from each."""

    block_size: int
    offset: float


@dataclass(frozen=True, slots=True)
class QuantState:
    """What a 4-bit weight was: ``shape`` and ``dtype`` (safetensors' name); and how it was quantised."""

    quant_type: str
    block_size: int
    dtype: str
    shape: tuple[int, ...]
    nested: Nested | None


def read_state(checkpoint: Checkpoint, name: str, quant_type: str) -> QuantState:
    """Read the tensor ``name``, whose name ends in ``quant_type``.

    Raises:
        CheckpointError: it is not the JSON that bitsandbytes writes, or describes a weight that cannot be.
    """
    header = checkpoint.tensors[name]
    if header.dtype != "U8" or len(header.shape) != 1 or header.nbytes > _MAX_BYTES:
        raise malformed(name, f"is no JSON in up to {_MAX_BYTES} bytes")
    try:
        state: Any = strict_json(bytes(checkpoint.read(name).tolist()))
    except ValueError:
        raise malformed(name, "is not JSON") from None
    match state:
        case {"quant_type": str(kind), "blocksize": int(block_size), "dtype": str(dtype), "shape": list(shape)}:
            pass
        case _:
            raise malformed(name, "lacks a type, a block size, a dtype or a shape")
    if kind != quant_type or kind not in CODES:
        raise malformed(name, f"has the type {kind[:40]!r}")
    if block_size not in _BLOCK_SIZES or dtype not in DTYPES:
        raise malformed(name, "has a block size or a dtype that bitsandbytes does not")
    if not 1 <= len(shape) <= 4 or not all(type(size) is int and 1 <= size < 2**31 for size in shape):
        raise malformed(name, "has an impossible shape")
    return QuantState(kind, block_size, DTYPES[dtype], tuple(shape), _nested(state, name))


def _nested(state: dict[str, Any], name: str) -> Nested | None:
    if not any(key.startswith("nested_") for key in state):
        return None
    match state:
        case {
            "nested_blocksize": int(size),
            "nested_offset": float(offset),
            "nested_dtype": "float32",
        }:
            pass
        case _:
            raise malformed(name, "describes its quantised scales incompletely")
    if not 1 <= size <= 2**20 or not math.isfinite(offset):
        raise malformed(name, "has an impossible block size or offset of its scales")
    return Nested(size, offset)
