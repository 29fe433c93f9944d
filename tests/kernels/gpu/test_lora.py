"""Deltas of many adapters, of mixed ranks and in any order, are each row's own, fused into a product or beside it."""

from typing import Any

import numpy as np
import pytest
import torch

from tuneserve.kernels.gpu import lora_join as join
from tuneserve.kernels.gpu.lora import (
    lora_expand,
    lora_gate,
    lora_gate_reference,
    lora_reference,
    lora_shrink,
)
from tuneserve.kernels.gpu.lora_join import (
    joined_columns,
    lora_join,
    lora_join_gate,
    lora_join_gate_reference,
    lora_join_norm_reference,
    lora_join_reference,
    put_joined,
)
from tuneserve.kernels.gpu.lora_rows import LoraRows, LoraWeights, lora_tiles
from tuneserve.kernels.gpu.matvec import LoraCall, matvec, matvec_reference
from tuneserve.kernels.gpu.skinny import skinny, skinny_reference

CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-3}
SLOTS, RANK = 5, 12


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def weights(columns: int, ends: tuple[int, ...], slots: int = SLOTS, beyond: float = torch.nan) -> LoraWeights:
    """Return adapters of ranks 12, 4, 1, 7 and 12; what A has beyond them must not be read unless it is zero."""
    ranks = [RANK, 4, 1, 7, RANK]
    a = torch.randn(SLOTS, len(ends), RANK, columns) / columns**0.5
    b = torch.randn(SLOTS, ends[-1], RANK)
    for slot, rank in enumerate(ranks):
        a[slot, :, rank:] = beyond
        b[slot, :, rank:] = 0
    a = a.view(SLOTS, -1, columns)
    return LoraWeights(a[:slots], b[:slots], torch.tensor(ranks, dtype=torch.int32)[:slots], ends)


def rows_of(adapters: LoraWeights, slots: list[int], room: int | None = None) -> LoraRows:
    rows = LoraRows.of(room or len(slots), [adapters])
    rows.shares.fill_(torch.nan)
    rows.shrunk.fill_(torch.nan)
    rows.put(slots)
    return rows


def test_delta_is_that_of_the_matrices_multiplied_out() -> None:
    adapters, x = weights(40, (10, 16)), torch.randn(2, 40)
    delta = lora_reference(x, adapters, torch.tensor([1, -1]))
    a, b = adapters.a[1].view(2, RANK, 40)[:, :4], adapters.b[1, :, :4]
    torch.testing.assert_close(delta[0], torch.cat((b[:10] @ a[0], b[10:] @ a[1])) @ x[0])
    assert not delta[1].any()


def test_tiles_cover_each_row_once_those_without_adapter_last() -> None:
    slots = np.array([2, -1, 0, 2] + [1] * 70, dtype=np.int32)
    order, tiles = lora_tiles(slots)
    assert order.tolist()[:3] == [2, *range(4, 6)]
    covered = [(row, slot) for first, count, slot in tiles.tolist() for row in order[first : first + count].tolist()]
    assert sorted(covered) == [(row, slot) for row, slot in enumerate(slots.tolist())]
    assert covered[-1] == (1, -1)


@pytest.mark.parametrize("slot", [-1, 0, 2])
@pytest.mark.parametrize("columns", [512, 1100])
@pytest.mark.parametrize(("gated", "ends"), [(True, (30, 60)), (False, (34,)), (False, (16, 20, 34))])
def test_matvec(columns: int, gated: bool, ends: tuple[int, ...], slot: int) -> None:
    adapters = weights(columns, ends)
    rows = rows_of(adapters, [slot])
    call = LoraCall(adapters, rows, torch.zeros(1, dtype=torch.int32))
    x, weight = torch.randn(1, columns), torch.randn(ends[-1], columns) / columns**0.5
    options: dict[str, Any] = {"norm": torch.rand(columns), "eps": 1e-5, "bias": torch.randn(ends[-1])}
    out = torch.full((1, ends[-1] // (1 + gated)), torch.nan)
    matvec(x, weight, **options, gated=gated, lora=call, out=out)
    torch.testing.assert_close(out, matvec_reference(x, weight, **options, gated=gated, lora=call), **CLOSE)


@pytest.mark.parametrize("slots", [[-1, -1], [1, 1, 1], [0, -1, 3, 3, 2, 1, 4, 0, 0, 1, 2, 3, -1, 0, 1, 2, 3, 4]])
@pytest.mark.parametrize(("gated", "ends"), [(True, (70, 140)), (False, (70,)), (False, (30, 40, 70))])
def test_skinny(gated: bool, ends: tuple[int, ...], slots: list[int]) -> None:
    columns = 700
    adapters = weights(columns, ends)
    call = LoraCall(adapters, rows_of(adapters, slots), torch.zeros(1, dtype=torch.int32))
    x, weight = torch.randn(len(slots), columns), torch.randn(ends[-1], columns) / columns**0.5
    residual = None if gated else torch.randn(len(slots), ends[-1])
    out = torch.full((len(slots), ends[-1] // (1 + gated)), torch.nan)
    skinny(x, weight, residual=residual, gated=gated, lora=call, out=out)
    expected = skinny_reference(x, weight, residual=residual, gated=gated, lora=call)
    torch.testing.assert_close(out, expected, **CLOSE)


@pytest.mark.parametrize("ends", [(150,), (64, 70, 150)])
@pytest.mark.parametrize("slots", [[-1] * 3, [0] * 40, [0, -1, 3, 3, 2, 1, 4] * 6])
def test_shrink_and_expand(slots: list[int], ends: tuple[int, ...]) -> None:
    adapters, x, out = weights(700, ends), torch.randn(len(slots), 700), torch.randn(len(slots), ends[-1])
    rows = rows_of(adapters, slots)
    expected = out + lora_reference(x, adapters, rows.slots)
    lora_shrink(x, adapters, rows)
    torch.testing.assert_close(lora_expand(adapters, rows, out), expected, **CLOSE)


@pytest.mark.parametrize("slots", [[-1] * 3, [0] * 40, [0, -1, 3, 3, 2, 1, 4] * 6])
def test_gate(slots: list[int]) -> None:
    adapters, x = weights(700, (150, 300)), torch.randn(len(slots), 700)
    gate_up, out = torch.randn(len(slots), 300), torch.full((len(slots), 150), torch.nan)
    rows = rows_of(adapters, slots)
    lora_shrink(x, adapters, rows)
    lora_gate(adapters, rows, gate_up, out)
    torch.testing.assert_close(out, lora_gate_reference(adapters, x, rows.slots, gate_up), **CLOSE)


@pytest.fixture(params=["one share, few rows", "several shares, many rows"])
def _divided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "several shares, many rows":
        for name, value in {"_FEW": 2, "_SHARE": 300, "_TAIL": 1000, "_BLOCK": 128}.items():
            monkeypatch.setattr(join, name, value)


@pytest.mark.usefixtures("_divided")
@pytest.mark.parametrize("slots", [[-1] * 3, [0] * 40, [-1] * 9 + [0] * 3, [0, -1, 3, 3, 2, 1, 4] * 6])
@pytest.mark.parametrize("made_by", ["norm", "gate", "nothing"])
def test_what_a_norm_or_a_gate_makes_comes_beside_its_shrinks(slots: list[int], made_by: str) -> None:
    adapters = weights(1100, (64, 150), SLOTS if max(slots) > 0 else 1, beyond=0.0)
    x, halves = torch.randn(len(slots), 1100), torch.randn(len(slots), 2200)
    rows, norm, weight = rows_of(adapters, slots), torch.rand(1100), torch.randn(150, 1100)
    joined = torch.zeros(150, 1100 + joined_columns(adapters))
    joined[:, :1100] = weight
    for slot in range(len(adapters.ranks)):
        put_joined(joined, adapters, slot)
    out = torch.full((len(slots), joined.shape[1]), torch.nan)
    if made_by == "gate":
        lora_join_gate(halves, adapters, rows, out)
        expected = lora_join_gate_reference(halves, adapters, rows.slots)
    elif made_by == "norm":
        lora_join(x, adapters, rows, out, norm=norm, eps=1e-5)
        expected = lora_join_norm_reference(x, norm, 1e-5, adapters, rows.slots)
    else:
        lora_join(x, adapters, rows, out)
        expected = lora_join_reference(x, adapters, rows.slots)
    torch.testing.assert_close(out, expected, **CLOSE)
    made = expected[:, :1100]
    torch.testing.assert_close(
        out @ joined.T, made @ weight.T + lora_reference(made, adapters, rows.slots), rtol=2e-3, atol=1e-2
    )


def test_rows_beyond_a_batch_have_none() -> None:
    adapters = weights(64, (20,))
    rows = rows_of(adapters, [3, 1, 3], room=8)
    rows.put([0])
    assert rows.slots.tolist() == [0] + [-1] * 7
    assert rows.tile_of.tolist() == [0] + [-1] * 7
    assert rows.counts.tolist() == [1, 2] and rows.tiles[0].tolist() == [0, 1, 0]
