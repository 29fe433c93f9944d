"""A feed-forward layer of experts on a GPU, without the host knowing who is chosen; see :mod:`._experts`."""

from collections.abc import Iterator
from typing import Protocol

import torch

from tuneserve.kernels.gpu.expert_gate import ExpertGate, ExpertWeights
from tuneserve.kernels.gpu.expert_row import row_down, row_gate_up
from tuneserve.kernels.gpu.expert_rows import rows_combine, rows_down, rows_gate_up, tile_of
from tuneserve.kernels.gpu.group import Groups, group
from tuneserve.kernels.gpu.route import Routes, RouteScratch, choose, route
from tuneserve.model._experts import Experts
from tuneserve.model._gpu_linear import FEW, DenseGpuLinear, Norm
from tuneserve.model._linear import DenseLinear


class GpuExperts(Protocol):
    """The experts of a layer, all of them or a device's part of each."""

    def add(self, x: torch.Tensor, norm: Norm, live: torch.Tensor, out: torch.Tensor) -> None:
        """Add what the experts of each row of ``x``, normed, come to; rows may be of a captured graph's buffers.

        Args:
            x: (rows, hidden).
            norm: before the router and the experts.
            live: integers (rows), above zero for rows that are tokens; others take no experts.
            out: (rows, hidden), may be ``x``.
        """

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what it keeps in memory for itself."""


class DenseGpuExperts:
    """Experts in 16 bits: one row reads the weights of those it takes, more rows are grouped by expert."""

    def __init__(self, experts: Experts) -> None:
        assert isinstance(experts.router, DenseLinear)
        spec, swiglu = experts.spec, experts.spec.swiglu
        self._spec, self._experts = spec, experts
        self._router = DenseGpuLinear(experts.router)
        self._gate_up = ExpertWeights(experts.gate_up.weight, experts.gate_up.bias)
        self._down = ExpertWeights(experts.down.weight, experts.down.bias)
        kind = experts.activation
        self._gate = ExpertGate(kind) if swiglu is None else ExpertGate("clamped", swiglu.alpha, swiglu.limit)
        device = experts.router.weight.device
        self._counts = torch.zeros(spec.count, dtype=torch.int32, device=device)
        self._scratch = RouteScratch.of(FEW, spec.count, device)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the weights, the router's too, and the biases."""
        return self._experts.tensors()

    def add(self, x: torch.Tensor, norm: Norm, live: torch.Tensor, out: torch.Tensor) -> None:
        """Add what the experts of each row come to; see :class:`GpuExperts`."""
        rows, per_token = len(x), self._spec.per_token
        routes = Routes.of(rows, per_token, self._counts)
        normed = self._route(x, norm, live, routes)
        inner = x.new_empty(rows * per_token, self._down.weight.shape[2])
        if rows == 1:
            row_gate_up(normed, routes, self._gate_up, self._gate, inner)
            row_down(inner, routes, self._down, out)
            return
        tile = tile_of(rows, per_token, self._spec.count)
        groups = Groups.of(rows * per_token, self._spec.count, tile, x.device)
        group(routes, groups)
        rows_gate_up(normed, groups, self._gate_up, self._gate, inner)
        products = rows_down(inner, routes, groups, self._down, x.new_empty(rows * per_token, x.shape[1]))
        rows_combine(products, routes, out)

    def _route(self, x: torch.Tensor, norm: Norm, live: torch.Tensor, routes: Routes) -> torch.Tensor:
        router, normalised = self._router, self._spec.normalised
        if len(x) <= FEW:
            route(
                x, norm.weight, norm.eps, router.weight, router.bias, live, self._scratch, routes, norm.out,
                normalised=normalised,
            )  # fmt: skip
            return norm.out
        normed = norm(x)
        scores = router.product(normed, x.new_empty(len(x), self._spec.count, dtype=torch.float32))
        choose(scores, live, routes, normalised=normalised)
        return normed
