"""The codes of GGUF's blocks of 32 and 256 values, as ``dequantize_row_*`` of ggml-quants.c read them."""

from typing import TYPE_CHECKING

from tuneserve.checkpoint._codes import CodeKind, StoredCodes
from tuneserve.checkpoint._gguf_blocks import raw_rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tuneserve.checkpoint._gguf import GgufTensor

    Bytes = npt.NDArray[np.uint8]
    Floats = npt.NDArray[np.float32]
    # Codes, scales, minima, outer scales, outer minima.
    Parts = tuple[Bytes, Floats, Floats | None, Floats | None, Floats | None]


def read_codes(tensor: "GgufTensor") -> StoredCodes | None:
    """Read a matrix of a type that stores integers of 4 to 8 bits in blocks of 32; None if it is of another.

    Raises:
        CheckpointError: the file has become shorter than its header said.
    """
    import numpy as np
    import torch

    readers = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k, "Q5_K": _q5_k,
               "Q6_K": _q6_k}  # fmt: skip
    reader = readers.get(tensor.kind)
    if reader is None or len(tensor.shape) != 2:
        return None
    rows, columns = tensor.shape
    blocks = raw_rows(tensor, 0, rows)
    # Scales of a stranger's may be infinite or not a number; whoever asks checks that.
    with np.errstate(all="ignore"):
        codes, scales, *others = reader(blocks)

    def shaped(part: "npt.NDArray[np.generic]") -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(part)).view(rows, -1)

    kind: CodeKind = "int4" if tensor.kind.startswith("Q4") else "int8"
    minima, outer_scales, outer_minima = (None if one is None else shaped(one) for one in others)
    return StoredCodes(kind, shaped(codes).view(rows, columns), shaped(scales), minima, outer_scales, outer_minima)


def _halves(raw: "Bytes") -> "Floats":
    import numpy as np

    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(packed: "Bytes", run: int) -> "Bytes":
    """Return the low halves of each ``run`` of bytes, then their high ones."""
    import numpy as np

    runs = packed.reshape(len(packed), -1, 1, run)
    return np.concatenate((runs & 15, runs >> 4), axis=2).reshape(len(packed), -1)


def _q8_0(blocks: "Bytes") -> "Parts":
    import numpy as np

    raw = blocks.reshape(-1, 34)
    return raw[:, 2:] ^ np.uint8(128), _halves(raw[:, :2]), None, None, None


def _q4_0(blocks: "Bytes") -> "Parts":
    raw = blocks.reshape(-1, 18)
    scales = _halves(raw[:, :2])
    return _nibbles(raw[:, 2:], 16), scales, -8 * scales, None, None


def _q4_1(blocks: "Bytes") -> "Parts":
    raw = blocks.reshape(-1, 20)
    return _nibbles(raw[:, 4:], 16), _halves(raw[:, :2]), _halves(raw[:, 2:4]), None, None


def _fives(raw: "Bytes") -> "Bytes":
    """Return codes of a block's 4 bytes of fifth bits and 16 of the lower four."""
    import numpy as np

    fifth = np.unpackbits(raw[:, :4], axis=1, bitorder="little")
    return _nibbles(raw[:, 4:], 16) | fifth << np.uint8(4)


def _q5_0(blocks: "Bytes") -> "Parts":
    import numpy as np

    raw = blocks.reshape(-1, 22)
    return _fives(raw[:, 2:]) + np.uint8(112), _halves(raw[:, :2]), None, None, None


def _q5_1(blocks: "Bytes") -> "Parts":
    raw = blocks.reshape(-1, 24)
    return _fives(raw[:, 4:]), _halves(raw[:, :2]), _halves(raw[:, 2:4]), None, None


def _nested(raw: "Bytes") -> "tuple[Floats, Floats, Floats, Floats]":
    """Return scales and minima of a block's first 16 bytes; minima are stored with the other sign."""
    import numpy as np
    from gguf.quants import Q4_K

    scales, minima = (part.astype(np.float32) for part in Q4_K.get_scale_min(raw[:, 4:16]))
    return scales, minima, _halves(raw[:, :2]), -_halves(raw[:, 2:4])


def _q4_k(blocks: "Bytes") -> "Parts":
    raw = blocks.reshape(-1, 144)
    return _nibbles(raw[:, 16:], 32), *_nested(raw)


def _q5_k(blocks: "Bytes") -> "Parts":
    import numpy as np

    raw = blocks.reshape(-1, 176)
    # One bit of each of 32 bytes for each group of 32.
    fifth = np.unpackbits(raw[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1).reshape(len(raw), -1)
    return _nibbles(raw[:, 48:], 32) | fifth << np.uint8(4), *_nested(raw)


def _q6_k(blocks: "Bytes") -> "Parts":
    import numpy as np

    raw = blocks.reshape(-1, 210)
    low = _nibbles(raw[:, :128], 64)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = (raw[:, 128:192].reshape(len(raw), 2, 1, 32) >> shifts) & np.uint8(3)
    codes: Bytes = low | high.reshape(len(raw), -1) << np.uint8(4)
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    codes += np.uint8(96)
    return codes, scales, None, _halves(raw[:, 208:]), None
