"""One int8 weight of bitsandbytes (LLM.int8()): a scale for each row, which is its largest magnitude."""

from dataclasses import dataclass
from typing import Self

import torch

from tuneserve.checkpoint._codes import StoredCodes, by_groups
from tuneserve.checkpoint._read import Checkpoint, torch_dtype
from tuneserve.checkpoint._tensor import TensorSpec
from tuneserve.checkpoint.quantised._dequantising import SLAB, malformed
from tuneserve.errors import CheckpointError

# 1 / 127, with the digits that bitsandbytes multiplies by.
_STEP = 7.874015748698502e-3


@dataclass(frozen=True)
class EightBitWeight:
    """``parts`` are the values, the rows' scales and the format's number where it is given."""

    spec: TensorSpec
    parts: tuple[str, ...]
    transposed: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, module: str, dtype: str, transposed: bool) -> Self:
        """Collect the parts of the weight of ``module``.

        Raises:
            CheckpointError: one is missing or of another size, or the values are in the layout of an old GPU.
        """
        name, scales, layout = f"{module}.weight", f"{module}.SCB", f"{module}.weight_format"
        values = checkpoint.tensors.get(name)
        if values is None or values.dtype != "I8" or len(values.shape) != 2 or not values.shape[1]:
            raise malformed(name, "is missing or not a matrix of int8 values")
        header = checkpoint.tensors[scales]
        if header.dtype != "F32" or header.shape != values.shape[:1]:
            raise malformed(scales, f"is not one F32 scale for each of {values.shape[0]} rows")
        parts: tuple[str, ...] = (name, scales)
        if (format_header := checkpoint.tensors.get(layout)) is not None:
            if format_header.dtype != "U8" or format_header.nbytes != 1:
                raise malformed(layout, "is not a number")
            if checkpoint.read(layout).item() != 0:
                raise CheckpointError(
                    f"{name[:200]!r} is stored in a GPU's own tile layout; save the model again with a current "
                    "bitsandbytes, which stores rows."
                )
            parts = (*parts, layout)
        shape = values.shape[::-1] if transposed else values.shape
        return cls(TensorSpec(name, dtype, shape), parts, transposed)

    @property
    def storage(self) -> str:
        """Integers of 8 bits."""
        return "INT8"

    def codes(self, checkpoint: Checkpoint) -> StoredCodes | None:
        """Read the values and their scales; None where the weight is to be transposed."""
        name, scale_name = self.parts[:2]
        rows, columns = checkpoint.tensors[name].shape
        scales = by_groups(checkpoint.read(scale_name)[:, None] * _STEP, (rows, columns), (1, columns))
        if self.transposed or scales is None:
            return None
        return StoredCodes("int8", checkpoint.read(name).view(torch.uint8) ^ 128, scales)

    def dequantise(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Read the weight, a slab of rows at a time."""
        name, scales = self.parts[:2]
        rows, columns = checkpoint.tensors[name].shape
        factors = checkpoint.read(scales)[:, None]
        out = torch.empty((rows, columns), dtype=torch_dtype(self.spec.dtype))
        step = max(1, SLAB // columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            out[start:stop] = checkpoint.read_rows(name, start, stop).float().mul_(factors[start:stop]).mul_(_STEP)
        return out.t().contiguous() if self.transposed else out
