"""One 4-bit weight of bitsandbytes: two values a byte, a scale for each block of values."""

import math
from dataclasses import dataclass
from typing import Self

import torch

from tuneserve.checkpoint._codes import StoredCodes
from tuneserve.checkpoint._read import Checkpoint, torch_dtype
from tuneserve.checkpoint._tensor import TensorSpec
from tuneserve.checkpoint.quantised._bnb4bit_state import QUANT_STATE, QuantState
from tuneserve.checkpoint.quantised._codes4 import CODES, pairs
from tuneserve.checkpoint.quantised._dequantising import SLAB, malformed


@dataclass(frozen=True)
class FourBitWeight:
    """``parts`` are the packed values, their scales and, where those are quantised, the scales' scales and code."""

    spec: TensorSpec
    parts: tuple[str, ...]
    state: QuantState
    transposed: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str, state: QuantState, transposed: bool) -> Self:
        """Collect the parts of the weight ``name``.

        Raises:
            CheckpointError: one is missing, or has not the dtype and size that ``state`` asks for.
        """
        values = math.prod(state.shape)
        blocks = -(-values // state.block_size)
        sizes = {f"{name}.absmax": ("F32" if state.nested is None else "U8", blocks), f"{name}.quant_map": ("F32", 16)}
        if state.nested is not None:
            sizes[f"{name}.nested_absmax"] = ("F32", -(-blocks // state.nested.block_size))
            sizes[f"{name}.nested_quant_map"] = ("F32", 256)
        for part, (dtype, size) in sizes.items():
            header = checkpoint.tensors.get(part)
            if header is None or header.dtype != dtype or header.shape != (size,):
                raise malformed(part, f"is missing or not {size} values of {dtype}")
        packed = checkpoint.tensors.get(name)
        if packed is None or len(packed.shape) != 2 or packed.shape[1] != 1 or packed.nbytes != (values + 1) // 2:
            raise malformed(name, f"is missing or not a column of {(values + 1) // 2} bytes")
        shape = state.shape[::-1] if transposed else state.shape
        parts = (name, *sizes, f"{name}{QUANT_STATE}{state.quant_type}")
        return cls(TensorSpec(name, state.dtype, shape), parts, state, transposed)

    @property
    def storage(self) -> str:
        """NF4 or FP4."""
        return self.state.quant_type.upper()

    def codes(self, checkpoint: Checkpoint) -> StoredCodes | None:
        """Read the codes and their scales; None of what is to be transposed, or where groups of 32 do not divide it."""
        state = self.state
        if self.transposed or len(state.shape) != 2 or state.shape[1] % 32:
            return None
        self._check_code(checkpoint)
        packed = checkpoint.read(self.spec.name).view(torch.uint8).flatten()
        codes = torch.stack((packed >> 4, packed & 15), dim=1).view(state.shape)
        # Blocks are of 32 values or a multiple, and cut the rows one after the other.
        groups = torch.arange(codes.numel() // 32) * 32 // state.block_size
        scales = self._scales(checkpoint)[groups].view(len(codes), -1)
        return StoredCodes("nf4" if state.quant_type == "nf4" else "fp4", codes, scales)

    def dequantise(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Read the weight, a slab at a time."""
        name, state = self.spec.name, self.state
        self._check_code(checkpoint)
        scales = self._scales(checkpoint)
        decode = pairs(CODES[state.quant_type], low_first=False)
        out = torch.empty(math.prod(state.shape), dtype=torch_dtype(state.dtype))
        row_bytes = torch_dtype(checkpoint.tensors[name].dtype).itemsize
        rows = checkpoint.tensors[name].shape[0]
        for start in range(0, len(out), SLAB):
            stop = min(start + SLAB, len(out))
            packed = checkpoint.read_rows(name, start // 2 // row_bytes, min(-(-stop // 2 // row_bytes), rows))
            values = decode[packed.view(torch.uint8).flatten().int()].view(torch.float32)[: stop - start]
            blocks = scales[start // state.block_size : -(-stop // state.block_size)]
            whole = len(values) // state.block_size * state.block_size
            values[:whole].view(-1, state.block_size).mul_(blocks[: whole // state.block_size, None])
            values[whole:].mul_(blocks[-1])
            out[start:stop] = values
        weight = out.view(state.shape)
        return weight.t().contiguous() if self.transposed else weight

    def _scales(self, checkpoint: Checkpoint) -> torch.Tensor:
        stored = checkpoint.read(f"{self.spec.name}.absmax")
        if (nested := self.state.nested) is None:
            return stored
        code = checkpoint.read(f"{self.spec.name}.nested_quant_map")
        outer = checkpoint.read(f"{self.spec.name}.nested_absmax")
        scales = code[stored.int()]
        scales *= outer.repeat_interleave(nested.block_size)[: len(scales)]
        return scales.add_(nested.offset)

    def _check_code(self, checkpoint: Checkpoint) -> None:
        name = f"{self.spec.name}.quant_map"
        expected = torch.tensor(CODES[self.state.quant_type])
        if not torch.allclose(checkpoint.read(name), expected, rtol=0, atol=1e-4):
            raise malformed(name, f"is not the code {self.state.quant_type.upper()}, which bitsandbytes reads it with")
