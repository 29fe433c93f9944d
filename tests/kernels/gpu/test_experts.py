"""The kernels of a layer of experts: who is chosen, how rows are grouped, and what their experts come to."""

from itertools import chain
from typing import Any

import pytest
import torch

from tuneserve.kernels.gpu import launch
from tuneserve.kernels.gpu.expert_gate import ExpertGate, ExpertWeights, experts_reference
from tuneserve.kernels.gpu.expert_row import row_down, row_gate_up
from tuneserve.kernels.gpu.expert_rows import rows_combine, rows_down, rows_gate_up
from tuneserve.kernels.gpu.group import Groups, group, group_reference
from tuneserve.kernels.gpu.route import Routes, RouteScratch, choose, choose_reference, route, route_reference

CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-3}
GATES = [ExpertGate(), ExpertGate("gelu_tanh"), ExpertGate("clamped", 1.7, 0.8)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("room", "stages"), [(232448, 4), (101376, 2), (49152, 1), (1000, 1)])
def test_tiles_take_as_many_stages_as_fit(room: int, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_shared_memory", lambda _: room)
    assert launch.stages_within(4, 49152, torch.device("cuda", 0)) == stages


def counts(experts: int) -> torch.Tensor:
    return torch.zeros(experts, dtype=torch.int32)


def assert_counted(routes: Routes) -> None:
    """Each expert's rows have the places from 0 on, each its own."""
    for expert, count in enumerate(routes.counts.tolist()):
        assert sorted(routes.places[routes.experts == expert].tolist()) == list(range(count))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("experts", "per_token"), [(5, 2), (128, 8), (3, 3)])
def test_choose(experts: int, per_token: int, normalised: bool) -> None:
    scores, live = torch.randn(6, experts), torch.tensor([1, 16, 0, 7, 0, 3])
    routes = Routes.of(6, per_token, counts(experts))
    choose(scores, live, routes, normalised=normalised)
    expected, shares = choose_reference(scores, per_token, normalised=normalised)
    assert torch.equal(routes.experts, expected.where(live[:, None] > 0, -1))
    torch.testing.assert_close(routes.shares, shares)
    assert_counted(routes)


# The interpreter's NumPy warns of what this is about.
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_scores_that_are_equal_or_no_numbers_choose_experts_all_the_same() -> None:
    scores = torch.zeros(4, 6)
    scores[1], scores[2, :5], scores[3] = torch.nan, torch.nan, -torch.inf
    routes = Routes.of(4, 3, counts(6))
    choose(scores, torch.ones(4), routes, normalised=True)
    assert routes.experts.tolist() == [[0, 1, 2], [0, 1, 2], [5, 0, 1], [0, 1, 2]]
    torch.testing.assert_close(routes.shares[0], torch.full((3,), 1 / 3))
    assert routes.shares[1].isnan().all()


@pytest.mark.parametrize(("experts", "hidden", "bias"), [(6, 96, False), (33, 1500, True)])
def test_route(experts: int, hidden: int, bias: bool) -> None:
    x, norm, weight = torch.randn(3, hidden), torch.rand(hidden), torch.randn(experts, hidden) / hidden**0.5
    added = torch.randn(experts) if bias else None
    live = torch.tensor([3, 0, 1], dtype=torch.int32)
    scratch, normed = RouteScratch.of(4, experts, x.device), torch.full_like(x, torch.nan)
    expected, scores = route_reference(x, norm, 1e-5, weight, added)
    chosen, shares = choose_reference(scores, 3, normalised=False)
    for _ in range(2):  # the second time from the scratch that the first has left
        routes = Routes.of(3, 3, counts(experts))
        route(x, norm, 1e-5, weight, added, live, scratch, routes, normed, normalised=False)
        torch.testing.assert_close(normed, expected, **CLOSE)
        assert torch.equal(routes.experts, chosen.where(live[:, None] > 0, -1))
        torch.testing.assert_close(routes.shares, shares, **CLOSE)
        assert_counted(routes)


def routed(rows: int, per_token: int, experts: int, dead: tuple[int, ...] = ()) -> Routes:
    """Return random routes; the first expert is popular, the second is nobody's."""
    scores, live = torch.randn(rows, experts), torch.ones(rows)
    scores[:, 0], scores[:, 1] = scores[:, 0].abs() + 1, -torch.inf
    live[list(dead)] = 0
    routes = Routes.of(rows, per_token, counts(experts))
    choose(scores, live, routes, normalised=True)
    return routes


@pytest.mark.parametrize(("rows", "per_token", "experts", "tile"), [(2, 3, 130, 16), (150, 2, 7, 32), (90, 4, 70, 16)])
def test_group(rows: int, per_token: int, experts: int, tile: int) -> None:
    routes = routed(rows, per_token, experts, dead=(1,))
    groups = Groups.of(rows * per_token, experts, tile, routes.counts.device)
    groups.tiles.fill_(7)
    group(routes, groups)
    expected = group_reference(routes, tile)
    found = [(expert, first, size) for expert, first, size in groups.tiles.tolist() if expert >= 0]
    assert [(expert, size) for expert, _, size in found] == [(expert, len(pairs)) for expert, pairs in expected]
    taken = [groups.order[first : first + size].tolist() for _, first, size in found]
    for expert in {expert for expert, _ in expected}:
        mine = [pairs for (other, _, _), pairs in zip(found, taken, strict=True) if other == expert]
        assert sorted(chain(*mine)) == sorted(chain(*(pairs for other, pairs in expected if other == expert)))


class Layer:
    """Experts whose sizes do not fit the tiles."""

    def __init__(self, experts: int, hidden: int, inner: int, bias: bool) -> None:
        self.inner = inner
        self.gate_up, self.down = (
            ExpertWeights(
                torch.randn(experts, rows, columns) / columns**0.5, torch.randn(experts, rows) if bias else None
            )
            for rows, columns in ((2 * inner, hidden), (hidden, inner))
        )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.kind)
def test_one_row(gate: ExpertGate, bias: bool) -> None:
    hidden, inner = 70, 42
    layer, routes = Layer(5, hidden, inner, bias), routed(1, 3, 5)
    x, before = torch.randn(1, hidden), torch.randn(1, hidden)
    between = row_gate_up(x, routes, layer.gate_up, gate, torch.full((3, inner), torch.nan))
    found = row_down(between, routes, layer.down, before.clone())
    expected = experts_reference(x, routes.experts, routes.shares, layer.gate_up, layer.down, gate)
    torch.testing.assert_close(found, before + expected, **CLOSE)


def test_one_long_row() -> None:
    layer, routes = Layer(5, 1100, 10, bias=False), routed(1, 3, 5)
    x, chosen = torch.randn(1, 1100), routes.experts[0].long()
    found = row_gate_up(x, routes, layer.gate_up, GATES[0], torch.full((3, 10), torch.nan))
    expected = GATES[0]((layer.gate_up.weight[chosen] @ x[0]).view(3, -1))
    torch.testing.assert_close(found, expected, **CLOSE)
    layer, between = Layer(5, 10, 1100, bias=False), torch.randn(3, 1100)
    products = (layer.down.weight[chosen] @ between[:, :, None]).squeeze(-1)
    found = row_down(between, routes, layer.down, torch.zeros(1, 10))
    torch.testing.assert_close(found, routes.shares @ products, **CLOSE)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.kind)
@pytest.mark.parametrize(("rows", "tile", "bias"), [(3, 16, True), (40, 32, False), (90, 128, True)])
def test_many_rows(rows: int, tile: int, bias: bool, gate: ExpertGate) -> None:
    hidden, inner, experts, dead = 150, 70, 5, (1,)
    layer, routes = Layer(experts, hidden, inner, bias), routed(rows, 2, experts, dead)
    x, before = torch.randn(rows, hidden), torch.randn(rows, hidden)
    x[1] = torch.nan
    groups = Groups.of(rows * 2, experts, tile, x.device)
    group(routes, groups)
    between, products = (torch.full((rows * 2, width), torch.nan) for width in (inner, hidden))
    rows_gate_up(x, groups, layer.gate_up, gate, between)
    rows_down(between, routes, groups, layer.down, products)
    found = rows_combine(products, routes, before.clone())
    expected = experts_reference(x, routes.experts, routes.shares, layer.gate_up, layer.down, gate)
    torch.testing.assert_close(found, before + expected, **CLOSE)
    assert torch.equal(found[1], before[1])
    assert not routes.counts.any()
