"""Packs linear weights for the compiled step: as they are, quantised, or in the bits of their checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tuneserve.checkpoint import StoredCodes
from tuneserve.kernels import cpu
from tuneserve.kernels.cpu import Kind

KINDS = {torch.float32: Kind.FLOAT32, torch.float16: Kind.FLOAT16, torch.bfloat16: Kind.BFLOAT16}
# Of linear.h.
_PANEL = 32


@dataclass(frozen=True)
class Packed:
    """Panels of a weight (rows, cols); ``kinds`` and ``offsets`` of each panel where they are of several kinds."""

    kind: Kind
    rows: int
    cols: int
    panels: torch.Tensor
    kinds: torch.Tensor | None = None
    offsets: torch.Tensor | None = None


def pack_dense(library: cpu.Library, weight: torch.Tensor, paired: bool, bits: Kind | None) -> Packed:
    """Pack a weight in its dtype, or quantised to ``bits``."""
    rows, cols = weight.shape
    kind = bits or KINDS[weight.dtype]
    source = (weight if bits is None else weight.float()).contiguous()
    panels = torch.empty(library.packed_bytes(kind, rows, cols), dtype=torch.uint8)
    library.pack(kind, paired, source.data_ptr(), rows, cols, panels.data_ptr())
    return Packed(kind, rows, cols, panels)


def pack_codes(library: cpu.Library, parts: Sequence[StoredCodes], paired: bool) -> Packed | None:
    """Pack weights that stand on each other as they are stored.

    Returns:
        None where they are stored in ways that one product cannot be made of: some with activations in floats and
        some in 8 bits; or of several kinds that are paired, or not of whole panels.
    """
    kinds = [_kind(part) for part in parts]
    if len(set(kinds)) == 1:
        return _packed(library, kinds[0], _stacked(parts), paired)
    whole = all(len(part.codes) % _PANEL == 0 for part in parts)
    if paired or not whole or len({kind.takes_floats for kind in kinds}) > 1:
        return None
    packed = [_packed(library, kind, part, paired=False) for kind, part in zip(kinds, parts, strict=True)]
    counts = torch.tensor([one.rows // _PANEL for one in packed])
    sizes = torch.tensor([one.panels.numel() // (one.rows // _PANEL) for one in packed]).repeat_interleave(counts)
    return Packed(
        kinds[0],
        sum(one.rows for one in packed),
        packed[0].cols,
        torch.cat([one.panels for one in packed]),
        torch.tensor(kinds, dtype=torch.uint8).repeat_interleave(counts),
        sizes.cumsum(0) - sizes,
    )


def _kind(part: StoredCodes) -> Kind:
    match part.kind:
        case "nf4":
            return Kind.NF4
        case "fp8":
            return Kind.FP8
        case "int4":
            assert part.minima is not None
            return Kind.INT4 if _is_half(part.scales) and _is_half(part.minima) else Kind.INT4_WIDE
    if part.group == cpu.GROUP_SIZE // 2:
        return Kind.INT8_BY_16
    return Kind.INT8 if _is_half(part.scales) else Kind.INT8_WIDE


def _is_half(scales: torch.Tensor) -> bool:
    return torch.equal(scales.half().float(), scales)


def _stacked(parts: Sequence[StoredCodes]) -> StoredCodes:
    if len(parts) == 1:
        return parts[0]
    minima = [part.minima for part in parts if part.minima is not None]
    return StoredCodes(
        parts[0].kind,
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(minima) if minima else None,
    )


def _packed(library: cpu.Library, kind: Kind, part: StoredCodes, paired: bool) -> Packed:
    rows, cols = part.codes.shape
    codes, scales = part.codes.contiguous(), part.scales.contiguous()
    minima = None if part.minima is None else part.minima.contiguous()
    groups = cols // (cpu.GROUP_SIZE // 2 if kind == Kind.INT8_BY_16 else cpu.GROUP_SIZE)
    assert codes.dtype == torch.uint8 and scales.dtype == torch.float32 and scales.shape == (rows, groups)
    assert minima is None or (minima.dtype == torch.float32 and minima.shape == scales.shape)
    panels = torch.empty(library.packed_bytes(kind, rows, cols), dtype=torch.uint8)
    library.pack_codes(
        kind, paired, codes.data_ptr(), scales.data_ptr(), None if minima is None else minima.data_ptr(), rows, cols,
        panels.data_ptr(),
    )  # fmt: skip
    return Packed(kind, rows, cols, panels)
