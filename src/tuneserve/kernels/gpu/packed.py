"""Weights of 4 or 8 bits in the order in which the matrix units of a GPU take them.

A fragment is 16 rows of a block of columns: 64 columns of 4 bits, or 32 of 8. Each of the 32 lanes of a warp reads four
adjacent words of it, which are four registers of the operand of ``mma.m16n8k16``, once for each code in half a word.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from tuneserve.checkpoint import NF4, StoredCodes

PackedKind = Literal["int8", "int4", "nf4", "fp8"]
ROWS = 16
WORDS = 128
# With it the table is nearer to numbers of bfloat16 than with others, by at most 1.6e-3 of each; scales undo it.
NF4_FACTOR = 1.18878173828125


def nf4_pairs() -> list[tuple[int, int]]:
    """Return NF4's codes in 8 pairs, those of each alike in the sign and in the last bit of the exponent.

    Two look-ups of a byte in 8 (``prmt``) can then be told apart by the code's highest bit without a mask: a look-up
    with that bit set returns the sign of what it would have found, eight times.
    """
    kept: dict[tuple[int, int], list[int]] = {}
    for code, bits in enumerate(nf4_bits()):
        kept.setdefault((bits >> 15, bits >> 7 & 1), []).append(code)
    return [pair for codes in kept.values() for pair in zip(codes[::2], codes[1::2], strict=True)]


def nf4_order() -> list[int]:
    """Return the codes in the order in which the kernels number them: the first of each pair, then the second."""
    first, second = zip(*nf4_pairs(), strict=True)
    return [*first, *second]


def nf4_bits() -> list[int]:
    """Return the bits of NF4's table times :data:`NF4_FACTOR` in bfloat16; zero is negative, for there to be pairs."""
    values = torch.tensor([value or -0.0 for value in NF4]) * NF4_FACTOR
    return [bits & 0xFFFF for bits in values.bfloat16().view(torch.int16).tolist()]


def nf4_values() -> list[float]:
    """Return what the packed codes of NF4 stand for."""
    bits = torch.tensor([nf4_bits()[code] for code in nf4_order()], dtype=torch.int32)
    values: list[float] = bits.short().view(torch.bfloat16).tolist()
    return values


@dataclass(frozen=True)
class PackedWeight:
    """A weight (rows, columns).

    Attributes:
        words: int32 (fragments of rows, blocks, 128).
        scales: float32 (fragments of rows, groups of columns, 16).
        minima: of the same shape, added to what is scaled; None where all are zero.
        shared: how many blocks have a scale together; 0 where each block of 64 columns has two.
    """

    kind: PackedKind
    rows: int
    columns: int
    words: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None
    shared: int

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self.tensors())

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield its parts."""
        yield self.words
        yield self.scales
        if self.minima is not None:
            yield self.minima

    def fragments(self, start: int, stop: int) -> "PackedWeight":
        """Return the rows of some fragments."""
        minima = None if self.minima is None else self.minima[start:stop]
        rows = min(self.rows, stop * ROWS) - start * ROWS
        return replace(self, rows=rows, words=self.words[start:stop], scales=self.scales[start:stop], minima=minima)


def block_of(kind: PackedKind) -> int:
    """Return the columns of a fragment."""
    return 64 if kind in ("int4", "nf4") else 32


def packed_kind(part: StoredCodes) -> PackedKind | None:
    """Return the kind of a weight that can be packed: its columns fill fragments, and groups are not below 32."""
    match part.kind:
        case "int8" | "int4" | "nf4" | "fp8" as kind:
            return kind if part.codes.shape[1] % block_of(kind) == 0 and part.group % 32 == 0 else None
        case _:
            return None


def shared_of(weight: PackedWeight) -> int:
    """Return how many blocks have a scale together; 0 where each has two, -1 where a row has one."""
    return -1 if weight.scales.shape[1] == 1 else weight.shared


def pack(part: StoredCodes) -> PackedWeight:
    """Pack a weight that has a :func:`packed_kind`, on the device where it is."""
    kind, codes = packed_kind(part), part.codes
    assert kind is not None
    rows, columns = codes.shape
    block, blocks = block_of(kind), columns // block_of(kind)
    scales, minima = _product(part.scales, part.outer_scales), part.minima
    if minima is not None:
        # The kernels subtract half the range, which leaves nothing where the codes are symmetric.
        minima = _product(minima, part.outer_minima) + (8 if kind == "int4" else 128) * scales
        minima = minima if minima.any() else None
    if kind == "nf4":
        scales = scales / NF4_FACTOR
        codes = torch.tensor(nf4_order()).argsort().byte().to(codes.device)[codes.int()]
    codes = codes ^ 128 if kind == "int8" else codes
    group = _least_group(scales, minima, columns)
    shared, every = group // block, group // (columns // scales.shape[1])
    padding = -rows % ROWS
    parts = [
        None if one is None else _by_fragments(torch.nn.functional.pad(one[:, ::every], (0, 0, 0, padding)))
        for one in (scales, minima)
    ]
    assert parts[0] is not None
    words = _words(kind, torch.nn.functional.pad(codes, (0, 0, 0, padding))).view(-1, blocks, WORDS)
    return PackedWeight(kind, rows, columns, words, parts[0], parts[1], shared)


def _product(factors: torch.Tensor, outer: torch.Tensor | None) -> torch.Tensor:
    """Multiply nested factors out, float32."""
    if outer is None:
        return factors.float()
    return factors.float() * outer.repeat_interleave(factors.shape[1] // outer.shape[1], 1)


def unpacked(weight: PackedWeight) -> torch.Tensor:
    """Return the weight in float32, as the kernels compute it but for rounding."""
    block = block_of(weight.kind)
    per_word = block // 8
    bits = 32 // per_word
    blocks = weight.words.shape[1]
    shifts = torch.tensor(_shifts(weight.kind), dtype=torch.int32, device=weight.words.device)
    codes = (weight.words[..., None] >> shifts) & ((1 << bits) - 1)
    # rows of 8, column threads, pairs of columns, halves of the rows; then pairs of codes
    codes = codes.view(-1, blocks, 8, 4, 2, 2, per_word // 2, 2)
    if weight.kind in ("int4", "nf4"):
        codes = codes.unflatten(6, (2, 2)).permute(0, 5, 2, 1, 6, 3, 7, 4, 8)
    else:
        codes = codes.permute(0, 5, 2, 1, 3, 6, 4, 7)
    codes = codes.reshape(-1, weight.columns)
    group = weight.columns // weight.scales.shape[1]
    values = _values(weight.kind, codes)
    scales = weight.scales.transpose(1, 2).flatten(0, 1).repeat_interleave(group, 1)
    values = values * scales
    if weight.minima is not None:
        values += weight.minima.transpose(1, 2).flatten(0, 1).repeat_interleave(group, 1)
    return values[: weight.rows]


def _values(kind: PackedKind, codes: torch.Tensor) -> torch.Tensor:
    match kind:
        case "int4":
            return codes.float() - 8
        case "nf4":
            return torch.tensor(nf4_values(), device=codes.device)[codes]
        case "int8":
            return codes.byte().view(torch.int8).float()
        case "fp8":
            return codes.byte().view(torch.float8_e4m3fn).float()


def _shifts(kind: PackedKind) -> list[int]:
    """Return where in a word the codes of the first product are, low half and high half, then those of the next."""
    match kind:
        case "int4":
            return [4 * product + 16 * half for product in range(4) for half in range(2)]
        case "nf4":
            return [4 * (2 * product + half) for product in range(4) for half in range(2)]
    return [8 * product + 16 * half for product in range(2) for half in range(2)]


def _words(kind: PackedKind, codes: torch.Tensor) -> torch.Tensor:
    # fragment, upper or lower rows, row, block, (half of the block,) thread of columns, product, pair, half of a word
    if block_of(kind) == 64:
        parts = codes.view(-1, 2, 8, codes.shape[1] // 64, 2, 4, 2, 2, 2).permute(0, 3, 2, 5, 7, 1, 4, 6, 8)
    else:
        parts = codes.view(-1, 2, 8, codes.shape[1] // 32, 4, 2, 2, 2).permute(0, 3, 2, 4, 6, 1, 5, 7)
    shifts = _shifts(kind)
    flat = parts.reshape(-1, len(shifts))
    words = torch.zeros(len(flat), dtype=torch.int32, device=codes.device)
    for index, shift in enumerate(shifts):
        words |= flat[:, index].int() << shift
    return words


def _by_fragments(grid: torch.Tensor) -> torch.Tensor:
    return grid.view(-1, ROWS, grid.shape[1]).transpose(1, 2).contiguous()


def _least_group(scales: torch.Tensor, minima: torch.Tensor | None, columns: int) -> int:
    """Return how many columns have a scale together, all of them or a power of two times what the scales say."""
    group = columns // scales.shape[1]

    def alike(times: int) -> bool:
        return all(
            one is None or torch.equal(one, one[:, ::times].repeat_interleave(times, 1)) for one in (scales, minima)
        )

    if alike(scales.shape[1]):
        return columns
    times = 1
    while scales.shape[1] % (2 * times) == 0 and alike(2 * times):
        times *= 2
    return group * times
