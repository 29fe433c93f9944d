"""ggml's own quantiser, in the shared library that the ``llama-cpp-python`` package carries.

Only ``libggml-base`` is loaded, which has no backends. https://github.com/ggml-org/ggml/blob/master/include/ggml.h
"""

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from tuneserve.artifacts.gguf._types import PRESETS, tensor_type
from tuneserve.errors import CheckpointError, InputError

_LIBRARY = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(sys.platform, "libggml-base.so")
_MIN_CHUNK = 1 << 16
_LARGEST = 65504.0
_INSTALL = "install it with: pip install 'tuneserve[gguf]'"


@cache
def load_ggml() -> ctypes.CDLL:
    """Load the library and check that it means the same types as we do.

    Raises:
        InputError: ``llama-cpp-python`` is not installed, cannot be loaded, or is of another ABI.
    """
    # Found without importing the package, whose import starts every backend.
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise InputError(f"this GGUF type needs ggml's quantiser, and llama-cpp-python is not installed; {_INSTALL}.")
    path = Path(spec.origin).parent / "lib" / _LIBRARY
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
    except (OSError, AttributeError) as error:
        raise InputError(
            f"ggml's library in llama-cpp-python cannot be used ({error}); reinstall it: {_INSTALL}."
        ) from None
    _check(library)
    return library


def quantise(name: str, rows: torch.Tensor, importance: torch.Tensor | None, threads: int) -> torch.Tensor:
    """Quantise ``rows`` (float32, contiguous, (rows, columns)) to the type ``name``.

    Args:
        name: a type as the ``gguf`` package names it.
        rows: the weights.
        importance: float32 of (columns,), how much each column matters, or None.
        threads: over how many threads the rows are spread.

    Returns:
        uint8 of (rows, bytes of a row).

    Raises:
        CheckpointError: a value is not finite, or too large.
        InputError: as :func:`load_ggml`.
    """
    library, kind = load_ggml(), tensor_type(name)
    count, columns = rows.shape
    # Beyond these, sums of squares overflow and ggml ends the process.
    if not rows.abs().amax() <= _LARGEST:
        raise CheckpointError(
            "the weights have values that are not finite, or beyond what blocks with float16 scales can hold; "
            "use the GGUF type bf16."
        )
    out = torch.empty(count, columns // kind.block * kind.nbytes, dtype=torch.uint8)
    weights = ctypes.c_void_p(importance.data_ptr()) if importance is not None else None
    step = max(-(-count // max(threads, 1)), -(-_MIN_CHUNK // columns))

    def run(first: int) -> int:
        number = min(step, count - first)
        source, target = rows[first].data_ptr(), out[first].data_ptr()
        return int(library.ggml_quantize_chunk(kind.number, source, target, 0, number, columns, weights))

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        written = sum(pool.map(run, range(0, count, step)))
    assert written == out.numel()
    return out


def _declare(library: ctypes.CDLL) -> None:
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    for function in (library.ggml_type_name, library.ggml_type_size, library.ggml_blck_size):
        function.argtypes = [ctypes.c_int]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip


def _check(library: ctypes.CDLL) -> None:
    for name in sorted({preset.base for preset in PRESETS.values()}):
        kind = tensor_type(name)
        found = (
            (library.ggml_type_name(kind.number) or b"?").decode(errors="replace"),
            library.ggml_blck_size(kind.number),
            library.ggml_type_size(kind.number),
        )
        if (found[0].upper(), *found[1:]) != (name, kind.block, kind.nbytes):
            raise InputError(
                f"ggml's library in llama-cpp-python has type {kind.number} as {found}, not as {name}; "
                f"its version does not fit: {_INSTALL}."
            )
