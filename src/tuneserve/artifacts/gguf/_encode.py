"""The bytes of one tensor of a GGUF file."""

import torch

from tuneserve.artifacts.gguf._blocks import BLOCKS, encode_blocks
from tuneserve.artifacts.gguf._ggml import quantise
from tuneserve.artifacts.gguf._types import tensor_bytes
from tuneserve.errors import CheckpointError

_CHUNK = 1 << 22


def encode(kind: str, tensor: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Encode ``tensor`` (any float dtype, any shape) as the type ``kind``, some millions of elements at a time.

    ``importance`` is float32 of (columns,), or of (experts, columns) for a tensor of three dimensions.

    Returns:
        A contiguous tensor of the type's own dtype, or uint8.

    Raises:
        CheckpointError: a value is not finite, or does not fit the type.
        InputError: the type needs ``llama-cpp-python``, which is missing or unsuitable.
    """
    if kind in ("F32", "BF16"):
        return tensor.to({"F32": torch.float32, "BF16": torch.bfloat16}[kind]).contiguous()
    if kind == "F16":
        return _half(tensor)
    if importance is not None and importance.ndim == 2 and kind != "Q8_0":
        slices = [encode(kind, part, weight) for part, weight in zip(tensor, importance, strict=True)]
        return torch.stack(slices)
    columns = tensor.shape[-1]
    rows = tensor.reshape(-1, columns)
    out = torch.empty(len(rows), tensor_bytes(kind, (1, columns)), dtype=torch.uint8)
    step = max(1, _CHUNK // columns)
    for first in range(0, len(rows), step):
        chunk = rows[first : first + step].to(torch.float32).contiguous()
        if kind in BLOCKS and (importance is None or kind == "Q8_0"):
            out[first : first + step] = encode_blocks(kind, chunk).view(-1, out.shape[1])
        else:
            out[first : first + step] = quantise(kind, chunk, importance, torch.get_num_threads())
    return out


def _half(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.to(torch.float16).contiguous()
    # A float16 has none of the exponents that bfloat16 has beyond 65504.
    if not half.isfinite().all():
        raise CheckpointError("the weights have values beyond what float16 can hold; use the GGUF type bf16 or f32.")
    return half


def needs_ggml(kind: str, importance: bool) -> bool:
    """Return whether encoding as ``kind`` takes ggml's library."""
    return kind not in ("F32", "F16", "BF16", "Q8_0") and (importance or kind not in BLOCKS)
