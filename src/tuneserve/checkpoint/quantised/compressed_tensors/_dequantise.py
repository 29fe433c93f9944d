"""Dequantisation of one weight, a slab of rows at a time, in float32."""

import torch

from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint.quantised.compressed_tensors._formats import decode_e8m0, decode_fp4
from tuneserve.checkpoint.quantised.compressed_tensors._layout import Layout
from tuneserve.checkpoint.quantised.compressed_tensors._packing import unpack
from tuneserve.checkpoint.quantised.compressed_tensors._quantise import slabs
from tuneserve.checkpoint.quantised.compressed_tensors._schemes import Args
from tuneserve.errors import CheckpointError


def dequantise(checkpoint: Checkpoint, layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight ``[rows, columns]`` that ``layout`` stores, rounded once to ``dtype``.

    Raises:
        CheckpointError: a file has shrunk since it was opened, or the group index points past the groups.
    """
    args, shape = layout.args, layout.shape
    codes = checkpoint.read(layout.codes)
    scales = read_scales(checkpoint, layout)
    zero_points = read_zero_points(checkpoint, layout)
    height, width = args.block(shape)
    columns = _group_index(checkpoint, layout)
    if columns is None:
        columns = torch.arange(shape[1]) // width

    weight = torch.empty(shape, dtype=dtype)
    for rows in slabs(weight.shape, 1):
        blocks = torch.arange(rows.start, rows.stop) // height
        values = _values(codes[rows], args, layout.packed)[:, : shape[1]]
        if zero_points is not None:
            values = values - _spread(zero_points, blocks, columns)
        weight[rows] = values * _spread(scales, blocks, columns)
    return weight


def _values(codes: torch.Tensor, args: Args, packed: bool) -> torch.Tensor:
    """Return what codes ``[rows, n]`` stand for before they are scaled, in float32."""
    if not packed:
        return codes.to(torch.float32)
    numbers = unpack(codes, args.num_bits)
    if args.type == "float":
        return decode_fp4(numbers)
    return numbers.to(torch.float32) - (1 << (args.num_bits - 1))


def _spread(grid: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the entries of ``grid`` for ``rows`` and ``columns``, or a dimension of one to be broadcast."""
    grid = grid if grid.shape[0] == 1 else grid.index_select(0, rows)
    return grid if grid.shape[1] == 1 else grid.index_select(1, columns)


def read_scales(checkpoint: Checkpoint, layout: Layout) -> torch.Tensor:
    """Return the scales, float32, one for each block of values."""
    scales = checkpoint.read(layout.scale).view(layout.args.scales(layout.shape))
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return decode_e8m0(scales.view(torch.uint8))
    scales = scales.to(torch.float32)
    if layout.global_scale is not None:
        scales /= checkpoint.read(layout.global_scale).view(1)
    return scales


def read_zero_points(checkpoint: Checkpoint, layout: Layout) -> torch.Tensor | None:
    """Return the zero points, float32, of the same shape as the scales; None where there are none."""
    if layout.zero_point is None:
        return None
    stored = checkpoint.read(layout.zero_point)
    grid = layout.args.scales(layout.shape)
    if stored.dtype != torch.int32:
        return stored.view(grid).to(torch.float32)
    bits = layout.args.num_bits
    numbers = unpack(stored.T.contiguous(), bits)[:, : grid[0]].T
    return numbers.to(torch.float32) - (1 << (bits - 1))


def _group_index(checkpoint: Checkpoint, layout: Layout) -> torch.Tensor | None:
    """Return the group of each column (int64), None where groups are in the columns' order."""
    if layout.group_index is None:
        return None
    index = checkpoint.read(layout.group_index).to(torch.int64)
    if (index == -1).all():
        return None
    groups = layout.args.scales(layout.shape)[1]
    if ((index < 0) | (index >= groups)).any():
        raise CheckpointError(
            f"{layout.group_index} points past the {groups} groups of its weight; download the model again."
        )
    return index
