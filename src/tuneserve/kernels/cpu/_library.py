"""The C interface of the compiled step; its structures are those of ``step.cpp``."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

# Of panels.h and attention.h.
GROUP_SIZE = 32
OUTER_SIZE = 256
BLOCK_SIZE = 16
_I32, _I64, _F32, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Kind(IntEnum):
    """How numbers are stored: a cache or an embedding as one of the floats, packed weights as any."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    NF4 = 3
    FP4 = 4
    E2M1 = 5
    FP8 = 6
    INT8 = 7
    INT8_WIDE = 8
    INT8_MINIMA_WIDE = 9
    INT8_MINIMA_NESTED = 10
    INT8_BY_16_NESTED = 11
    INT4 = 12
    INT4_WIDE = 13
    INT4_NESTED = 14

    @property
    def takes_floats(self) -> bool:
        """Whether activations stay floats; else they are quantised to 8 bits in groups of 32."""
        return self < Kind.INT8


class Activation(IntEnum):
    """What the gate of a feed-forward layer goes through."""

    SILU = 0
    GELU_TANH = 1


class Codes(ctypes.Structure):
    """What is packed without being rounded: uint8 codes (rows, cols), one a byte, and float32 factors.

    Codes of integers without minima are value + 128. Scales and minima are (rows, cols / 32), but scales of kinds by 16
    (rows, cols / 16). Where they are nested they are integers of 8 signed bits, and the outer ones (rows, cols / 256).
    What a kind lacks is null.
    """

    _fields_ = tuple((name, _POINTER) for name in ("codes", "scales", "minima", "outer_scales", "outer_minima"))


class Linear(ctypes.Structure):
    """A packed weight (rows, cols) and a float32 bias (rows) or null.

    Where its panels are of several kinds, ``kinds`` is uint8 and ``offsets`` int64, for each panel; else null.
    """

    _fields_ = (("kind", _I32), ("rows", _I32), ("cols", _I32), ("unused", _I32), ("panels", _POINTER),
                ("bias", _POINTER), ("kinds", _POINTER), ("offsets", _POINTER))  # fmt: skip


class Delta(ctypes.Structure):
    """What an adapter adds to one linear layer; see ``lora.h``. All zero where it adds nothing."""

    _fields_ = (("rank", _I32), ("rows", _I32), ("cols", _I32), ("unused", _I32),
                ("a", _POINTER), ("b", _POINTER), ("parts", _POINTER))  # fmt: skip


class Layer(ctypes.Structure):
    """One layer, in float32 but for packed weights; what a family lacks is null, a window of 0 is none.

    ``cos`` and ``sin`` are (context, rotary_dim / 2), ``sinks`` (heads). Weight and bias of ``gate_up`` are paired: 16
    rows of the gate, then the 16 of the up projection that they multiply.
    """

    _fields_ = (
        *((name, _POINTER) for name in ("attention_norm", "mlp_norm", "post_attention_norm", "post_mlp_norm",
                                        "query_norm", "key_norm", "sinks")),
        *((name, Linear) for name in ("qkv", "output", "gate_up", "down")),
        ("cos", _POINTER), ("sin", _POINTER), ("rotary_dim", _I32), ("window", _I32),
    )  # fmt: skip


class Model(ctypes.Structure):
    """A whole decoder; what it points to must outlive it."""

    _fields_ = (
        *((name, _I32) for name in ("hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocab",
                                    "activation", "cache_kind", "embedding_kind")),
        *((name, _F32) for name in ("eps", "attention_scale", "attention_softcap", "logit_softcap", "embedding_scale",
                                    "residual_scale", "logit_scale", "unused")),
        ("embedding", _POINTER), ("norm", _POINTER), ("query_scales", _POINTER), ("head", Linear),
        ("layer", ctypes.POINTER(Layer)),
    )  # fmt: skip


class Batch(ctypes.Structure):
    """The tokens of a step, the cache and where results go; see ``step.cpp``."""

    _fields_ = (
        *((name, _I32) for name in ("tokens", "sequences", "max_blocks", "unused")),
        *((name, _POINTER) for name in ("ids", "positions", "slots", "starts", "block_tables", "keys",
                                        "values")),
        ("layer_stride", _I64), ("hidden", _POINTER), ("slots_of_adapters", _POINTER), ("deltas", _POINTER),
    )  # fmt: skip


@dataclass(frozen=True)
class Library:
    """The functions; each releases the interpreter's lock while it runs.

    Attributes:
        packed_bytes: of (kind, rows, cols).
        pack: (kind, paired, source, rows, cols, target); the source is float32 for int8 and int4.
        pack_codes: (kind, paired, codes, rows, cols, target).
        open: (threads) to a session or None. A session runs one step at a time.
        close: (session).
        step: (session, model, batch) to 0, or 1 where memory ran out.
        head: (session, model, hidden, rows, logits) likewise.
    """

    packed_bytes: Callable[[int, int, int], int]
    pack: Callable[[int, int, int, int, int, int], None]
    pack_codes: Callable[..., None]
    open: Callable[[int], int | None]
    close: Callable[[int], None]
    step: Callable[..., int]
    head: Callable[..., int]


def load(path: Path) -> Library:
    """Load the library at ``path``, which :func:`build` returned."""
    library = ctypes.CDLL(str(path))

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = library[name]
        found.restype, found.argtypes = result, arguments
        return found

    return Library(
        packed_bytes=function("ts_packed_bytes", _I64, _I32, _I32, _I32),
        pack=function("ts_pack", None, _I32, _I32, _POINTER, _I32, _I32, _POINTER),
        pack_codes=function("ts_pack_codes", None, _I32, _I32, ctypes.POINTER(Codes), _I32, _I32, _POINTER),
        open=function("ts_open", _POINTER, _I32),
        close=function("ts_close", None, _POINTER),
        step=function("ts_step", _I32, _POINTER, ctypes.POINTER(Model), ctypes.POINTER(Batch)),
        head=function("ts_head", _I32, _POINTER, ctypes.POINTER(Model), _POINTER, _I32, _POINTER),
    )
