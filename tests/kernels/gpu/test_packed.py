"""Protects: weights of 4 and 8 bits give the products of what they stand for, whichever way they are grouped."""

from typing import Any

import pytest
import torch

from tuneserve.checkpoint import NF4, StoredCodes
from tuneserve.kernels.gpu.dequantise import dequantise
from tuneserve.kernels.gpu.packed import PackedKind, PackedWeight, pack, unpacked
from tuneserve.kernels.gpu.packed_skinny import packed_skinny, packed_skinny_reference
from tuneserve.kernels.gpu.packed_wide import WideScratch, packed_wide, packed_wide_reference

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
KINDS: list[PackedKind] = ["int4", "nf4", "int8", "fp8"]
# The table is in bfloat16, times a factor with which it loses the least.
ROUNDED = {"nf4": 1.6e-3}
# Of the largest numbers, for the products to be small.
SIZES = {"int4": 80, "nf4": 10, "int8": 1280, "fp8": 4480}
ROWS, COLUMNS = 72, 384
CPU = torch.device("cpu")


def codes(
    kind: PackedKind, group: int = 64, rows: int = ROWS, columns: int = COLUMNS, *, minima: bool = False
) -> StoredCodes:
    """Return random codes, each ``group`` columns of which have one scale."""
    generator = torch.Generator().manual_seed(rows + group)
    drawn = torch.randint(16 if kind in ("int4", "nf4") else 256, (rows, columns), generator=generator).byte()
    if kind == "fp8":
        drawn[drawn & 127 == 127] = 0
    scales, least = (torch.rand(2, rows, columns // group, generator=generator) + 0.1).repeat_interleave(
        group // 32, -1
    ) / SIZES[kind]
    return StoredCodes(kind, drawn, scales, None if kind != "int4" else -least if minima else -8 * scales)


def values(stored: StoredCodes) -> torch.Tensor:
    """Return what codes say, by the tables of those who made them."""
    match stored.kind:
        case "int4":
            plain = stored.codes.float()
        case "nf4":
            plain = torch.tensor(NF4)[stored.codes.int()]
        case "int8":
            plain = stored.codes.float() - 128
        case "fp8":
            plain = stored.codes.view(torch.float8_e4m3fn).float()
    plain = plain * stored.scales.repeat_interleave(stored.group, 1)
    return plain if stored.minima is None else plain + stored.minima.repeat_interleave(stored.group, 1)


@pytest.mark.parametrize("group", [32, 64, 128, COLUMNS])
@pytest.mark.parametrize("kind", KINDS)
def test_packing_keeps_the_weight(kind: PackedKind, group: int) -> None:
    stored = codes(kind, group)
    packed = pack(stored)
    assert packed.scales.shape[1] == COLUMNS // group
    torch.testing.assert_close(unpacked(packed), values(stored), rtol=ROUNDED.get(kind, 1e-6), atol=1e-6)
    assert packed.minima is None


@pytest.mark.parametrize("group", [32, 128])
def test_minima_are_kept(group: int) -> None:
    stored = codes("int4", group, minima=True)
    torch.testing.assert_close(unpacked(pack(stored)), values(stored), **CLOSE)


def weights() -> list[Any]:
    """Return a weight of each kind and grouping."""
    made = [pytest.param(pack(codes(kind, group)), id=f"{kind} {group}") for kind in KINDS for group in (32, 128)]
    made += [pytest.param(pack(codes(kind, COLUMNS)), id=f"{kind} rows") for kind in KINDS]
    return made + [
        pytest.param(pack(codes("int4", group, minima=True)), id=f"int4 {group} minima") for group in (32, 64)
    ]


@pytest.mark.parametrize("weight", weights())
@pytest.mark.parametrize(("count", "residual"), [(1, False), (3, True), (21, True)])
def test_products(weight: PackedWeight, count: int, residual: bool) -> None:
    x = torch.randn(count, COLUMNS)
    options: dict[str, Any] = {"residual": torch.randn(count, ROWS)} if residual else {"bias": torch.randn(ROWS)}
    out = torch.full((count, ROWS), torch.nan)
    packed_skinny(x, weight, **options, out=out)
    torch.testing.assert_close(out, packed_skinny_reference(x, weight, **options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", weights())
@pytest.mark.parametrize(("count", "residual"), [(40, True), (130, False)])
def test_products_of_many_rows(weight: PackedWeight, count: int, residual: bool) -> None:
    x = torch.randn(count, COLUMNS)
    options: dict[str, Any] = {"residual": torch.randn(count, ROWS)} if residual else {"bias": torch.randn(ROWS)}
    out = torch.full((count, ROWS), torch.nan)
    packed_wide(x, weight, **options, scratch=WideScratch.of(CPU), out=out)
    torch.testing.assert_close(out, packed_wide_reference(x, weight, **options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "minima"), [*((kind, False) for kind in KINDS), ("int4", True)])
def test_products_of_many_rows_whose_columns_are_shared(kind: PackedKind, minima: bool) -> None:
    weight = pack(codes(kind, 128, columns=1664, minima=minima))
    x, hidden, scratch = torch.randn(130, 1664), torch.randn(130, ROWS), WideScratch.of(CPU)
    scratch.partials.zero_()
    expected = packed_wide_reference(x, weight, residual=hidden)
    for _ in range(2):
        # The second finds the scratch as the first has left it.
        out = hidden.clone()
        packed_wide(x, weight, residual=out, scratch=scratch, out=out)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert not scratch.arrived.any()
    assert scratch.partials.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_gated_products(kind: PackedKind, bias: bool) -> None:
    weight = pack(codes(kind, rows=96))
    x = torch.randn(2, COLUMNS)
    options: dict[str, Any] = {"gated": True, "bias": torch.randn(96) if bias else None}
    out = torch.full((2, 48), torch.nan)
    packed_skinny(x, weight, **options, out=out)
    torch.testing.assert_close(out, packed_skinny_reference(x, weight, **options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", weights())
def test_dequantised(weight: PackedWeight) -> None:
    out = torch.full((ROWS, COLUMNS), torch.nan)
    assert torch.equal(dequantise(weight, out), unpacked(weight))


def test_what_is_not_a_number_stays_so() -> None:
    weight = pack(codes("nf4"))
    x = torch.randn(2, COLUMNS)
    x[1, 5] = torch.nan
    out = torch.zeros(2, ROWS)
    packed_skinny(x, weight, out=out)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
