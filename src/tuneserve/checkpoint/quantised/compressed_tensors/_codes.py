"""One weight as it is stored, for engines that compute with it."""

import torch

from tuneserve.checkpoint._codes import StoredCodes, by_groups
from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint.quantised._fp8 import fp8_codes
from tuneserve.checkpoint.quantised.compressed_tensors._dequantise import read_scales, read_zero_points
from tuneserve.checkpoint.quantised.compressed_tensors._layout import Layout
from tuneserve.checkpoint.quantised.compressed_tensors._packing import unpack


def stored_codes(checkpoint: Checkpoint, layout: Layout) -> StoredCodes | None:
    """Read integers and floats of 4 and 8 bits in blocks that groups of 32 columns divide; else return None.

    Columns must be in the order of their groups.
    """
    args, shape = layout.args, layout.shape
    if args.num_bits not in (4, 8) or layout.group_index is not None or layout.global_scale is not None:
        return None
    block = args.block(shape)
    scales = by_groups(read_scales(checkpoint, layout), shape, block)
    if scales is None:
        return None
    codes = checkpoint.read(layout.codes)
    if args.type == "float":
        if args.num_bits == 8:
            return fp8_codes(codes, scales)
        return StoredCodes("e2m1", unpack(codes, 4)[:, : shape[1]].contiguous(), scales)
    stored = read_zero_points(checkpoint, layout)
    zeros = None if stored is None else by_groups(stored, shape, block)
    half = 1 << (args.num_bits - 1)
    numbers = unpack(codes, args.num_bits) if layout.packed else (codes.view(torch.uint8) + half) & (2 * half - 1)
    numbers = numbers[:, : shape[1]].contiguous()
    if args.num_bits == 8 and (zeros is None or not zeros.any()):
        return StoredCodes("int8", numbers, scales)
    minima = -(half if zeros is None else zeros + half) * scales
    return StoredCodes("int8" if args.num_bits == 8 else "int4", numbers, scales, minima)
