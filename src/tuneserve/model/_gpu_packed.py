"""Linear layers of 4 and 8 bits on a GPU: as a checkpoint stores them, or quantised when they are loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tuneserve.checkpoint import StoredCodes
from tuneserve.kernels.gpu.dequantise import dequantise
from tuneserve.kernels.gpu.gate import gate
from tuneserve.kernels.gpu.packed import ROWS, PackedWeight, pack, packed_kind
from tuneserve.kernels.gpu.packed_skinny import packed_skinny
from tuneserve.kernels.gpu.packed_wide import WideScratch, packed_wide
from tuneserve.model._gpu_linear import FEW, Norm, write_product
from tuneserve.spec import Activation

Bits = Literal["int8", "int4"]
GROUP = 32
_SHRINKS = 8
# Beyond so many rows, writing a weight out once costs less than what cuBLAS is faster.
_WIDE = 256
# Values that are dequantised at a time; 128 MB.
_SLAB = 1 << 26


@dataclass(frozen=True)
class PackedScratch:
    """What the products of all packed weights use in turn.

    Attributes:
        slab: where weights are written out.
        wide: where shares of products are added up, in the same memory.
    """

    slab: torch.Tensor
    wide: WideScratch

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device) -> "PackedScratch":
        """Return scratch for weights in ``dtype``."""
        slab = torch.empty(_SLAB if device.type == "cuda" else 1 << 16, dtype=dtype, device=device)
        return cls(slab, WideScratch.of(device, slab))


class PackedGpuLinear:
    """A packed weight, and perhaps a bias; products of many rows write it out in 16 bits, a slab at a time.

    Args:
        weight: (out, in).
        scratch: of all layers.
    """

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None, scratch: PackedScratch) -> None:
        self.weight, self.bias, self._scratch = weight, bias, scratch

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the parts of the weight, and the bias if there is one."""
        yield from self.weight.tensors()
        if self.bias is not None:
            yield self.bias

    def product(self, x: torch.Tensor, out: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Write the product of ``x`` to ``out``; see :class:`~tuneserve.model._gpu_linear.GpuLinear`."""
        x = x if norm is None else norm(x)
        if len(x) <= FEW:
            return packed_skinny(x, self.weight, bias=self.bias, out=out)
        return self._many(x, out)

    def gated(
        self, x: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor, norm: Norm, activation: Activation
    ) -> torch.Tensor:
        """Write the gated product of ``x`` to ``out``; see :class:`~tuneserve.model._gpu_linear.GpuLinear`."""
        x = norm(x)
        if len(x) <= FEW:
            return packed_skinny(x, self.weight, bias=self.bias, gated=True, activation=activation, out=out)
        return gate(self._many(x, scratch), out, activation)

    def add(self, x: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add the product of ``x`` to ``hidden``."""
        if len(x) <= FEW:
            packed_skinny(x, self.weight, bias=self.bias, residual=hidden, out=hidden)
            return
        if len(x) <= _WIDE:
            packed_wide(x, self.weight, bias=self.bias, residual=hidden, scratch=self._scratch.wide, out=hidden)
            return
        if self.bias is not None:
            hidden.add_(self.bias)
        for first, part in self._slabs():
            hidden[:, first : first + len(part)].addmm_(x, part.T)

    def _many(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if len(x) <= _WIDE:
            return packed_wide(x, self.weight, bias=self.bias, scratch=self._scratch.wide, out=out)
        for first, part in self._slabs():
            rows = slice(first, first + len(part))
            write_product(x, part, None if self.bias is None else self.bias[rows], out[:, rows])
        return out

    def _slabs(self) -> Iterator[tuple[int, torch.Tensor]]:
        weight, slab = self.weight, self._scratch.slab
        step = max(1, slab.numel() // (weight.columns * ROWS))
        for start in range(0, len(weight.words), step):
            part = weight.fragments(start, start + step)
            out = slab[: part.rows * part.columns].view(part.rows, part.columns)
            yield start * ROWS, dequantise(part, out)


def pack_stored(
    parts: Sequence[StoredCodes], device: torch.device, dtype: torch.dtype, *, gated: bool
) -> PackedWeight | None:
    """Pack weights that stand on each other as they are stored; None where the kernels cannot compute with them.

    That is, where they are stored in different ways, have groups of less than 32, or columns or, where they are the
    halves of a gate, rows that do not fill fragments; or where the model is not in bfloat16.
    """
    first = parts[0]
    rows = sum(len(part.codes) for part in parts)
    ways = {(part.kind, part.group, len(part.factors())) for part in parts}
    fits = packed_kind(first) is not None and not (gated and rows % (2 * ROWS))
    if len(ways) > 1 or not fits or (device.type == "cuda" and dtype != torch.bfloat16):
        return None

    def stacked(name: str) -> torch.Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat([one.to(device) for one in found])

    codes, scales = stacked("codes"), stacked("scales")
    assert codes is not None and scales is not None
    others = (stacked(name) for name in ("minima", "outer_scales", "outer_minima"))
    return pack(StoredCodes(first.kind, codes, scales, *others))


def quantise(weight: torch.Tensor, bits: Bits) -> StoredCodes:
    """Quantise a weight (rows, columns) in groups of 32 columns, with scales that are float16 numbers.

    int8 is symmetric; int4 has minima too, of a few widths those of the least square error.
    """
    step = max(1, _SLAB // 8 // weight.shape[1])
    parts = [(_quantise8 if bits == "int8" else _quantise4)(part) for part in torch.split(weight, step)]
    codes, scales, minima = (torch.cat(list(one)) for one in zip(*parts, strict=True))
    return StoredCodes(bits, codes, scales, minima if bits == "int4" else None)


def _quantise8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = weight.float().view(len(weight), -1, GROUP)
    scales = _halves(groups.abs().amax(-1, keepdim=True) / 127)
    codes = torch.where(scales > 0, groups / scales, 0).round().clamp(-127, 127) + 128
    return codes.byte().flatten(1), scales.squeeze(-1), scales.squeeze(-1)


def _quantise4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    codes, scales, minima = torch.zeros_like(groups), torch.zeros_like(low), torch.zeros_like(low)
    for shrink in range(_SHRINKS):
        cut = 0.02 * shrink * (high - low)
        scale, least = _halves((high - low - 2 * cut) / 15), _halves(low + cut)
        tried = torch.where(scale > 0, (groups - least) / scale, 0).round().clamp(0, 15)
        error = (least + scale * tried - groups).square().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        codes, scales = torch.where(better, tried, codes), torch.where(better, scale, scales)
        minima = torch.where(better, least, minima)
    return codes.byte().flatten(1), scales.squeeze(-1), minima.squeeze(-1)


def _halves(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.half().float()
