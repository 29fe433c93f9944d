"""Tensors as blocks of 32 elements with a scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, as ggml's reference rounds them.

Formats and rounding: ggml-quants.c (``quantize_row_*_ref``). A scale is float16 but rows are divided by it in float32.
"""

import torch

from tuneserve.errors import CheckpointError

BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
_BLOCK = 32


def encode_blocks(name: str, rows: torch.Tensor) -> torch.Tensor:
    """Return the blocks of ``rows`` (float32; the size of the last dimension is a multiple of 32) as uint8.

    Raises:
        CheckpointError: a value is not finite, or beyond what a float16 scale can hold.
    """
    blocks = rows.reshape(-1, _BLOCK)
    if name == "Q8_0":
        scale = blocks.abs().amax(dim=1, keepdim=True) / 127
        scaled = blocks * _inverse(scale)
        whole = scaled.abs().floor()
        # Halves away from zero, as C's roundf.
        whole += (scaled.abs() - whole) >= 0.5
        return torch.cat([_half(scale), torch.copysign(whole, scaled).to(torch.int8).view(torch.uint8)], dim=1)
    levels = 16 if name.startswith("Q4") else 32
    if name.endswith("_0"):
        extreme = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
        scale = extreme / (-levels // 2)
        values = blocks * _inverse(scale) + (levels // 2 + 0.5)
        head = _half(scale)
    else:
        least, most = blocks.aminmax(dim=1, keepdim=True)
        scale = (most - least) / (levels - 1)
        values = (blocks - least) * _inverse(scale) + 0.5
        head = torch.cat([_half(scale), _half(least)], dim=1)
    quanta = values.trunc().clamp_(0, levels - 1).to(torch.uint8)
    low, high = quanta[:, : _BLOCK // 2], quanta[:, _BLOCK // 2 :]
    packed = (low & 15) | (high << 4)
    if levels == 16:
        return torch.cat([head, packed], dim=1)
    return torch.cat([head, _fifth_bits(quanta), packed], dim=1)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, scale, 1 / scale)


def _half(values: torch.Tensor) -> torch.Tensor:
    half = values.to(torch.float16)
    if not half.isfinite().all():
        raise CheckpointError("the weights have values that are not finite, or beyond float16; use the GGUF type bf16.")
    return half.view(torch.uint8)


def _fifth_bits(quanta: torch.Tensor) -> torch.Tensor:
    bits = (quanta >> 4).reshape(-1, 4, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(dim=2, dtype=torch.uint8)
