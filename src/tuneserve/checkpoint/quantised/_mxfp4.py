"""Reads the MXFP4 experts of gpt-oss: 4-bit floats in blocks of 32 that share a power of two.

Formats: OCP Microscaling Formats (MX) 1.0, section 5.3.3, and ``convert_moe_packed_tensors`` of Transformers, whose
layout the result has: the input dimension before the output dimension.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from tuneserve.checkpoint._codes import StoredCodes
from tuneserve.checkpoint._read import Checkpoint, torch_dtype
from tuneserve.checkpoint._tensor import TensorHeader, TensorSpec
from tuneserve.checkpoint.quantised._codes4 import pairs
from tuneserve.checkpoint.quantised._dequantising import (
    DequantisingReader,
    config_dtype,
    dequantising_reader,
    malformed,
)
from tuneserve.errors import CheckpointError

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BLOCK = 32
_BIAS = 127


def open_mxfp4(checkpoint: Checkpoint, config: Mapping[str, Any]) -> DequantisingReader:
    """Open a checkpoint of ``quant_method`` "mxfp4"; ``NAME_blocks`` and ``NAME_scales`` become ``NAME``.

    Raises:
        CheckpointError: blocks or scales are missing, left over, or of shapes that do not go together.
    """
    dtype = config_dtype(config)
    weights = [
        Mxfp4Experts.of(checkpoint, header, dtype)
        for name, header in checkpoint.tensors.items()
        if name.endswith("_blocks")
    ]
    if not weights:
        raise CheckpointError(
            f"config.json says that the weights are MXFP4, but {checkpoint.files[0]} holds none that are; "
            "if they were saved in 16 bits, remove quantization_config from config.json."
        )
    reader = dequantising_reader(checkpoint, weights)
    for name in reader.tensors:
        if name.endswith("_scales"):
            raise malformed(name, "belongs to blocks that are not there")
    return reader


@dataclass(frozen=True)
class Mxfp4Experts:
    """The stacked weights of all experts; ``parts`` are blocks, ``[experts, out, in / 32, 16]``, and exponents."""

    spec: TensorSpec
    parts: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint, blocks: TensorHeader, dtype: str) -> Self:
        """Pair blocks with their scales.

        Raises:
            CheckpointError: the scales are missing, or the shapes are not those of stacked experts.
        """
        name = blocks.name.removesuffix("_blocks")
        scales = checkpoint.tensors.get(f"{name}_scales")
        if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[3] != _BLOCK // 2 or not blocks.nbytes:
            raise malformed(blocks.name, "is not a stack of matrices in blocks of 16 bytes")
        if scales is None or scales.dtype != "U8" or scales.shape != blocks.shape[:3]:
            raise malformed(f"{name}_scales", f"is missing or not one byte for each block of {blocks.shape[:3]}")
        experts, rows, groups, _ = blocks.shape
        spec = TensorSpec(name, dtype, (experts, groups * _BLOCK, rows))
        return cls(spec, (blocks.name, scales.name))

    @property
    def storage(self) -> str:
        """Floats of 4 bits that share powers of two."""
        return "MXFP4"

    def codes(self, _: Checkpoint, /) -> StoredCodes | None:
        """Return None: experts are dequantised."""
        return None

    def dequantise(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Read the experts, one at a time."""
        blocks, scales = self.parts
        experts, columns, rows = self.spec.shape
        groups = columns // _BLOCK
        decode = pairs(_E2M1, low_first=True)
        out = torch.empty(self.spec.shape, dtype=torch_dtype(self.spec.dtype))
        for expert in range(experts):
            packed = checkpoint.read_rows(blocks, expert * rows * groups, (expert + 1) * rows * groups)
            values = decode[packed.int()].view(torch.float32)
            exponents = checkpoint.read_rows(scales, expert * rows, (expert + 1) * rows)
            torch.ldexp(values, exponents.view(-1, 1).int() - _BIAS, out=values)
            out[expert] = values.view(rows, columns).t()
        return out
