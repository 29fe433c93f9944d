"""One weight as it is stored, for engines that compute with it."""

import torch

from tuneserve.checkpoint._codes import StoredCodes, by_groups
from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint.quantised._fp8 import fp8_codes
from tuneserve.checkpoint.quantised.compressed_tensors._dequantise import read_scales, read_zero_points
from tuneserve.checkpoint.quantised.compressed_tensors._layout import Layout
from tuneserve.checkpoint.quantised.compressed_tensors._packing import unpack


def stored_codes(checkpoint: Checkpoint, layout: Layout) -> StoredCodes | None:
    """Read 4-bit and 8-bit integers and 8-bit floats in blocks that groups of 32 columns divide; else return None.

    8-bit integers must be symmetric, and columns in the order of their groups.
    """
    args, shape = layout.args, layout.shape
    if args.num_bits not in (4, 8) or layout.group_index is not None or layout.global_scale is not None:
        return None
    if args.type == "float" and args.num_bits == 4:
        return None
    block = args.block(shape)
    scales = by_groups(read_scales(checkpoint, layout), shape, block)
    if scales is None or not scales.isfinite().all():
        return None
    codes = checkpoint.read(layout.codes)
    if args.type == "float":
        return fp8_codes(codes, scales)
    stored = read_zero_points(checkpoint, layout)
    zeros = None if stored is None else by_groups(stored, shape, block)
    if args.num_bits == 8:
        if zeros is not None and zeros.any():
            return None
        bits = codes.view(torch.uint8)[:, : shape[1]]
        return StoredCodes("int8", (bits if layout.packed else bits ^ 128).contiguous(), scales)
    numbers = unpack(codes, 4) if layout.packed else (codes + 8).view(torch.uint8)
    offset = 8.0 if zeros is None else zeros + 8
    return StoredCodes("int4", numbers[:, : shape[1]].contiguous(), scales, -offset * scales)
