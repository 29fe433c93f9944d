"""Reads checkpoints whose weights are 8-bit floats with a scale per tensor, per row or per block.

Formats: ``quant_method`` "fp8" (DeepSeek, Qwen, Mistral; ``weight_scale_inv``, which despite its name is multiplied by)
as ``Fp8Dequantize`` of Transformers reads it, the same with vLLM's ``weight_scale``, and "fbgemm_fp8" (Llama 3.1 405B).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from tuneserve.checkpoint._codes import StoredCodes, by_groups
from tuneserve.checkpoint._read import Checkpoint, torch_dtype
from tuneserve.checkpoint._tensor import TensorHeader, TensorSpec
from tuneserve.checkpoint.quantised._dequantising import (
    SLAB,
    DequantisingReader,
    config_dtype,
    dequantising_reader,
    malformed,
)
from tuneserve.errors import CheckpointError

_FLOATS = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F32", "BF16", "F16", "U8", "F8_E8M0")
_SUFFIXES = ("_scale_inv", "_scale")
# Scales of activations and of the cache: they say how to run the model in 8 bits, not what its weights are.
_IGNORED = (
    ".activation_scale",
    ".input_scale",
    ".input_scale_ub",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
)


def open_fp8(checkpoint: Checkpoint, config: Mapping[str, Any]) -> DequantisingReader:
    """Open a checkpoint of ``quant_method`` "fp8" or "fbgemm_fp8".

    The weights are dequantised to the dtype of ``config``, those of fbgemm_fp8 to bfloat16, the only one it has.

    Raises:
        CheckpointError: a scale is missing, left over or fits no way of scaling its weight; or experts are packed in
            4 bits or are fbgemm_fp8's, whose scales lie across them.
    """
    quantisation = config["quantization_config"]
    fbgemm = quantisation["quant_method"] == "fbgemm_fp8"
    if quantisation.get("expert_dtype", "fp8") != "fp8":
        raise CheckpointError("experts in packed FP4 beside FP8 weights cannot be read; use the 16-bit model instead.")
    dtype = "BF16" if fbgemm else config_dtype(config)
    weights = _collect(checkpoint, _block_size(quantisation.get("weight_block_size")), dtype)
    for weight in weights:
        if fbgemm and len(weight.spec.shape) != 2:
            raise CheckpointError(
                f"the stacked experts {weight.spec.name[:200]!r} of fbgemm_fp8 cannot be read; use the 16-bit model."
            )
    reader = dequantising_reader(checkpoint, weights, [name for name in checkpoint.tensors if name.endswith(_IGNORED)])
    for name in reader.tensors:
        if name.endswith((".weight_scale_inv", ".weight_scale")):
            raise malformed(name, "belongs to a weight that is not there or not in 8 bits")
    return reader


def _collect(checkpoint: Checkpoint, block_size: tuple[int, int] | None, dtype: str) -> "list[Float8Weight]":
    tensors = checkpoint.tensors
    weights = []
    for name, header in tensors.items():
        if header.dtype not in _FLOATS:
            continue
        scales = [name + suffix for suffix in _SUFFIXES if name + suffix in tensors]
        if len(scales) != 1:
            raise malformed(name, f"has {len(scales)} scales beside it instead of one")
        weights.append(Float8Weight.of(header, tensors[scales[0]], block_size, dtype))
    if not weights:
        raise CheckpointError(
            f"config.json says that the weights are FP8, but {checkpoint.files[0]} holds none that are; "
            "if they were saved in 16 bits, remove quantization_config from config.json."
        )
    return weights


@dataclass(frozen=True)
class Float8Weight:
    """``parts`` are the values, ``[..., rows, columns]``, and their scales, one for each ``block`` of values."""

    spec: TensorSpec
    parts: tuple[str, ...]
    block: tuple[int, int]

    @classmethod
    def of(cls, weight: TensorHeader, scale: TensorHeader, configured: tuple[int, int] | None, dtype: str) -> Self:
        """Pair a weight with its scales.

        Raises:
            CheckpointError: the shapes do not go together, or the scales have no dtype of scales.
        """
        if len(weight.shape) not in (2, 3) or weight.nbytes == 0:
            raise malformed(weight.name, "is not a matrix nor a stack of them")
        if scale.dtype not in _SCALES:
            raise malformed(scale.name, f"has the dtype {scale.dtype}")
        block = _block(weight.shape, scale.shape, configured)
        if block is None:
            raise malformed(scale.name, f"has the shape {scale.shape}, which does not fit {weight.shape}")
        return cls(TensorSpec(weight.name, dtype, weight.shape), (weight.name, scale.name), block)

    @property
    def storage(self) -> str:
        """Floats of 8 bits."""
        return "FP8"

    def codes(self, checkpoint: Checkpoint) -> StoredCodes | None:
        """Read the bits and their scales; None of e5m2, of stacks, and of what has NaN or blocks that are no groups."""
        name, scale_name = self.parts
        if checkpoint.tensors[name].dtype != "F8_E4M3" or len(self.spec.shape) != 2:
            return None
        rows, columns = self.spec.shape
        grid = (-(-rows // self.block[0]), -(-columns // self.block[1]))
        scales = by_groups(_float_scales(checkpoint.read(scale_name)).view(grid), (rows, columns), self.block)
        return None if scales is None else fp8_codes(checkpoint.read(name), scales)

    def dequantise(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Read the weight, a slab of rows at a time."""
        name, scale_name = self.parts
        *stack, rows, columns = self.spec.shape
        block_rows, block_columns = self.block
        grid = (*stack, -(-rows // block_rows), -(-columns // block_columns))
        scales = _float_scales(checkpoint.read(scale_name)).view(grid).flatten(0, -2)
        out = torch.empty(self.spec.shape, dtype=torch_dtype(self.spec.dtype))
        flat = out.view(-1, columns)
        step = max(1, SLAB // columns)
        for first in range(0, len(flat), step):
            rows_here = torch.arange(first, min(first + step, len(flat)))
            # The row of the grid that each row of the stack is scaled by.
            grid_rows = rows_here // rows * grid[-2] + rows_here % rows // block_rows
            values = checkpoint.read_rows(name, first, first + len(rows_here)).float()
            factors = scales[grid_rows]
            if grid[-1] > 1:
                factors = factors.repeat_interleave(block_columns, dim=1)[:, :columns]
            flat[first : first + len(rows_here)] = values.mul_(factors)
        return out


def fp8_codes(values: torch.Tensor, scales: torch.Tensor) -> StoredCodes | None:
    """Return e4m3 ``values`` as codes; None where some are NaN, or a scale is too large for its kernel."""
    codes = values.view(torch.uint8)
    if ((codes & 0x7F) == 0x7F).any() or scales.abs().max() > 1e30:
        return None
    return StoredCodes("fp8", codes, scales)


def _block(
    weight: tuple[int, ...], scale: tuple[int, ...], configured: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Return how many rows and columns share a scale; None if ``scale`` is the shape of no such grid."""
    *stack, rows, columns = weight
    if math.prod(scale) == math.prod(stack):
        return rows, columns
    if not stack and scale in ((rows,), (rows, 1)):
        return 1, columns
    *outer, grid_rows, grid_columns = scale if len(scale) > 1 else (0, 0)
    if outer != stack:
        return None
    if configured and (grid_rows, grid_columns) == (-(-rows // configured[0]), -(-columns // configured[1])):
        return configured
    # Some checkpoints scale some weights by other blocks than they say; without a remainder they are certain.
    if grid_rows and grid_columns and rows % grid_rows == 0 and columns % grid_columns == 0:
        return rows // grid_rows, columns // grid_columns
    return None


def _block_size(configured: Any) -> tuple[int, int] | None:
    match configured:
        case None:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise CheckpointError(
        f"config.json has the weight_block_size {str(configured)[:40]}, which is not two positive numbers; correct it."
    )


def _float_scales(scales: torch.Tensor) -> torch.Tensor:
    if scales.dtype == torch.uint8:
        scales = scales.view(torch.float8_e8m0fnu)
    return scales.float()
