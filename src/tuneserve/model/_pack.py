"""Packs linear weights for the compiled step: as they are, quantised, or in the bits of their checkpoint."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tuneserve.checkpoint import StoredCodes
from tuneserve.errors import CheckpointError
from tuneserve.kernels import cpu
from tuneserve.kernels.cpu import Kind
from tuneserve.model._pages import Pages

KINDS = {torch.float32: Kind.FLOAT32, torch.float16: Kind.FLOAT16, torch.bfloat16: Kind.BFLOAT16}
# Of panels.h.
_PANEL = 32
_HALF_MAX = 65504.0


@dataclass(frozen=True)
class Packed:
    """Panels of a weight (rows, cols); ``kinds`` and ``offsets`` of each panel where they are of several kinds."""

    kind: Kind
    rows: int
    cols: int
    panels: torch.Tensor
    kinds: torch.Tensor | None = None
    offsets: torch.Tensor | None = None


def pack_dense(library: cpu.Library, weight: torch.Tensor, paired: bool, bits: Kind | None, pages: Pages) -> Packed:
    """Pack a weight in its dtype, or quantised to ``bits``, into memory of ``pages``.

    Raises:
        CheckpointError: a value is not finite, or too large for scales in float16.
    """
    rows, cols = weight.shape
    if bits is not None and not weight.abs().max() <= _HALF_MAX:
        raise CheckpointError(
            f"the model holds weights that {bits.name.lower()} cannot, too large or not numbers; leave weights at auto."
        )
    kind = bits or KINDS[weight.dtype]
    source = (weight if bits is None else weight.float()).contiguous()
    panels = pages.empty(library.packed_bytes(kind, rows, cols))
    library.pack(kind, paired, source.data_ptr(), rows, cols, panels.data_ptr())
    return Packed(kind, rows, cols, panels)


def pack_codes(library: cpu.Library, parts: Sequence[StoredCodes], paired: bool, pages: Pages) -> Packed | None:
    """Pack weights that stand on each other as they are stored, into memory of ``pages``.

    Returns:
        None where they are stored in ways that one product cannot be made of: some with activations in floats and
        some in 8 bits; or of several kinds that are paired, or not of whole panels.
    """
    kinds = [_kind(part) for part in parts]
    whole = all(len(part.codes) % _PANEL == 0 for part in parts)
    if len(set(kinds)) == 1:
        kinds, parts = kinds[:1], (_stacked(parts),)
    elif paired or not whole or len({kind.takes_floats for kind in kinds}) > 1:
        return None
    rows, cols = [len(part.codes) for part in parts], parts[0].codes.shape[1]
    sizes = [library.packed_bytes(kind, count, cols) for kind, count in zip(kinds, rows, strict=True)]
    panels = pages.empty(sum(sizes))
    for kind, part, into in zip(kinds, parts, torch.split(panels, sizes), strict=True):
        _write(library, kind, part, paired, into)
    if len(parts) == 1:
        return Packed(kinds[0], rows[0], cols, panels)
    counts = torch.tensor(rows) // _PANEL
    each = (torch.tensor(sizes) // counts).repeat_interleave(counts)
    of_panels = torch.tensor(kinds, dtype=torch.uint8).repeat_interleave(counts)
    return Packed(kinds[0], sum(rows), cols, panels, of_panels, each.cumsum(0) - each)


def _kind(part: StoredCodes) -> Kind:
    if part.kind not in ("int8", "int4"):
        return Kind[part.kind.upper()]
    by_16 = "_BY_16" if part.group == cpu.GROUP_SIZE // 2 else ""
    minima = "_MINIMA" if part.kind == "int8" and part.minima is not None else ""
    narrow = not by_16 and not minima and all(_is_half(factor) for factor in part.factors())
    scales = "_NESTED" if part.outer_scales is not None else "" if narrow else "_WIDE"
    return Kind[f"{part.kind.upper()}{minima}{by_16}{scales}"]


def _is_half(scales: torch.Tensor) -> bool:
    return torch.equal(scales.half().float(), scales)


def _stacked(parts: Sequence[StoredCodes]) -> StoredCodes:
    def stack(name: str) -> torch.Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    if len(parts) == 1:
        return parts[0]
    codes, scales = stack("codes"), stack("scales")
    assert codes is not None and scales is not None
    return StoredCodes(parts[0].kind, codes, scales, stack("minima"), stack("outer_scales"), stack("outer_minima"))


def _write(library: cpu.Library, kind: Kind, part: StoredCodes, paired: bool, panels: torch.Tensor) -> None:
    rows, cols = part.codes.shape
    codes, factors = part.codes.contiguous(), [factor.contiguous() for factor in part.factors()]
    group = cpu.GROUP_SIZE // 2 if kind == Kind.INT8_BY_16_NESTED else cpu.GROUP_SIZE
    assert codes.dtype == torch.uint8 and part.scales.shape == (rows, cols // group) and cols % group == 0
    assert part.minima is None or part.minima.shape == part.scales.shape
    assert all(factor.dtype == torch.float32 for factor in factors)
    outer = [one for one in (part.outer_scales, part.outer_minima) if one is not None]
    assert all(one.shape == (rows, cols // cpu.OUTER_SIZE) for one in outer)
    given = cpu.Codes(codes=codes.data_ptr())
    names = ("scales", "minima", "outer_scales", "outer_minima")
    for name, factor in zip((name for name in names if getattr(part, name) is not None), factors, strict=True):
        setattr(given, name, factor.data_ptr())
    library.pack_codes(kind, paired, ctypes.byref(given), rows, cols, panels.data_ptr())
