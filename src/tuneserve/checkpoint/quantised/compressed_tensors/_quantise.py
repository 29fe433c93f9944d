"""Round-to-nearest quantisation of one weight, a slab of rows at a time, in float32."""

import math
from collections.abc import Iterator

import torch

from tuneserve.checkpoint.quantised.compressed_tensors._formats import (
    FP4_MAX,
    FP8_MAX,
    decode_e8m0,
    encode_e8m0,
    encode_fp4,
)
from tuneserve.checkpoint.quantised.compressed_tensors._packing import pack_nibbles
from tuneserve.checkpoint.quantised.compressed_tensors._schemes import Args
from tuneserve.errors import CheckpointError

# Four megabytes of float32 per slab: a few of them fit a processor's cache.
_SLAB = 1 << 20
# What stands for the scale of a block of zeros.
_FP8_SCALE_OF_ZEROS = 0.125


def quantise(
    name: str,
    weight: torch.Tensor,
    args: Args,
    codes: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | None = None,
) -> None:
    """Quantise ``weight`` ``[rows, columns]`` into ``codes`` and ``scales``, both allocated as they are stored.

    The blocks of ``args`` divide the weight. ``codes`` is int8, float8_e4m3fn, or uint8 for codes to be packed (4-bit
    ones in pairs, integers raised to be positive); ``scales`` is float, uint8 (E8M0), or float8_e4m3fn with the
    ``global_scale`` (float32 ``[1]``) that multiplies it.

    Raises:
        CheckpointError: the weight ``name`` holds values that are not finite.
    """
    height, width = args.block((weight.shape[0], weight.shape[1]))
    for rows in slabs(weight.shape, height):
        values = weight[rows].to(torch.float32)
        blocks = values.view(values.shape[0] // height, height, values.shape[1] // width, width)
        largest = blocks.abs().amax(dim=(1, 3))
        if not largest.isfinite().all():
            raise _not_finite(name)
        stored, scale = _scales(largest, args, scales.dtype, global_scale)
        scales[rows.start // height : rows.stop // height] = stored
        scaled = (blocks / scale[:, None, :, None]).view_as(values)
        codes[rows] = _codes(scaled, args, codes.dtype)


def global_scale(largest: float) -> torch.Tensor:
    """Return the float32 ``[1]`` that lifts the scales of a weight into FP8's range, given its largest magnitude."""
    scale = FP8_MAX * FP4_MAX / torch.tensor([largest]).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(scale.isinf(), 1.0, scale)


def largest_magnitude(name: str, weight: torch.Tensor) -> float:
    """Return the largest magnitude in ``weight`` ``[rows, columns]``.

    Raises:
        CheckpointError: the weight ``name`` holds values that are not finite.
    """
    lowest, highest = weight.aminmax()
    largest = max(-lowest.item(), highest.item())
    if not math.isfinite(largest):
        raise _not_finite(name)
    return largest


def slabs(shape: torch.Size, multiple: int) -> Iterator[slice]:
    """Yield the rows of a weight in slices of a multiple of rows, about as many as are worked on at a time."""
    step = max(1, _SLAB // shape[1] // multiple) * multiple
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _scales(
    largest: torch.Tensor, args: Args, dtype: torch.dtype, global_scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales as stored and as the float32 numbers they stand for, given each block's largest magnitude."""
    if dtype == torch.uint8:
        stored = encode_e8m0(largest, FP8_MAX if args.num_bits == 8 else FP4_MAX)
        return stored, decode_e8m0(stored)
    if global_scale is not None:
        stored = (global_scale * (largest / FP4_MAX)).clamp(max=FP8_MAX).to(dtype)
        lifted = stored.to(torch.float32)
        lifted = torch.where(lifted == 0, _FP8_SCALE_OF_ZEROS, lifted)
        return lifted.to(dtype), lifted / global_scale
    half_range = FP8_MAX if args.type == "float" else (2**args.num_bits - 1) / 2
    stored = (largest / half_range).to(dtype)
    stored = torch.where(stored == 0, torch.finfo(dtype).eps, stored)
    return stored, stored.to(torch.float32)


def _codes(scaled: torch.Tensor, args: Args, dtype: torch.dtype) -> torch.Tensor:
    if args.type == "float":
        return pack_nibbles(encode_fp4(scaled)) if args.num_bits == 4 else scaled.clamp_(-FP8_MAX, FP8_MAX).to(dtype)
    half = 1 << (args.num_bits - 1)
    rounded = scaled.clamp_(-half, half - 1).round_()
    if dtype == torch.int8:
        return rounded.to(dtype)
    raised = rounded.add_(half).to(dtype)
    return pack_nibbles(raised) if args.num_bits == 4 else raised


def _not_finite(name: str) -> CheckpointError:
    return CheckpointError(f"{name} holds values that are not finite; repair the model that it comes from.")
