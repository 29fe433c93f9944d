"""Adapters unmerged on a GPU: low-rank deltas beside each linear layer, each row of a step with its own.

Up to :data:`~tuneserve.model._gpu_linear.FEW` rows, the product of a dense weight computes the delta as well. So it
does for more rows of a few adapters, whose expands then stand beside the weight in the same matrix; beside packed
weights and for many adapters, kernels after the product do.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch

from tuneserve.adapters import LinearName, linear_shapes
from tuneserve.errors import AdapterError
from tuneserve.kernels.gpu.gate import gate
from tuneserve.kernels.gpu.launch import power_of_two
from tuneserve.kernels.gpu.lora import lora_expand, lora_gate, lora_shrink
from tuneserve.kernels.gpu.lora_join import lora_join, lora_join_gate, put_joined
from tuneserve.kernels.gpu.lora_rows import LoraRows, LoraWeights
from tuneserve.kernels.gpu.matvec import LoraCall, matvec
from tuneserve.kernels.gpu.skinny import skinny
from tuneserve.model._gpu_linear import FEW, DenseGpuLinear, GpuLinear, Norm, write_product
from tuneserve.model._gpu_lora_layer import AdaptedLayer, fill, grown, piece_ends_of, pieces_of
from tuneserve.model._gpu_weights import GpuWeights
from tuneserve.model._lora import AdapterWeights
from tuneserve.spec import ModelSpec

# The kernels have the whole rank of a tile in shared memory.
_LEAST_RANK, _MOST_RANK = 16, 128
# No more are in a captured step.
_KEPT_ROWS = 512


class GpuAdapters:
    """The adapters of a decoder, each in a slot, and which rows of the step at hand take which.

    ``rows`` is None where all are of the base. Memory grows by doubling; :meth:`put` says when it was moved, and with
    it what graphs were captured over.
    """

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.rows: LoraRows | None = None
        self._dtype, self._device = dtype, device
        self._slots = self._rank = 0
        self._used: set[int] = set()
        self._kept: dict[int, LoraRows] = {}
        shapes = linear_shapes(spec)
        self._arrived = torch.zeros(len(shapes), 1, dtype=torch.int32, device=device)
        self.layers = {
            key: AdaptedLayer(columns, piece_ends_of(spec, key[1], outputs), arrived)
            for (key, (outputs, columns)), arrived in zip(shapes.items(), self._arrived, strict=True)
        }

    def put(self, slot: int, adapter: AdapterWeights) -> bool:
        """Let ``slot`` be this adapter; say whether memory was moved.

        Raises:
            AdapterError: its rank is too large, or there is not enough memory.
        """
        pieces = {key: pieces_of(self.layers[key].ends, deltas) for key, deltas in adapter.items()}
        rank = max((len(a) for parts in pieces.values() for a, _ in parts), default=1)
        if rank > _MOST_RANK:
            raise AdapterError(
                f"the adapter has rank {rank}, and the GPU's kernels compute up to {_MOST_RANK} unmerged; merge it "
                "with 'tuneserve export', or serve it alone."
            )
        slots, rank = power_of_two(slot + 1), power_of_two(max(rank, _LEAST_RANK))
        moved = slots > self._slots or rank > self._rank or any(self.layers[key].adapters is None for key in pieces)
        if moved:
            self._grow(max(slots, self._slots), max(rank, self._rank), pieces.keys())
        self._used.add(slot)
        for key, layer in self.layers.items():
            if layer.adapters is not None:
                fill(layer.adapters, layer.ends, slot, pieces.get(key, []))
                if layer.joined is not None:
                    put_joined(layer.joined, layer.adapters, slot)
        return moved

    def drop(self, slot: int) -> bool:
        """Forget what is in a slot; say whether memory was given back."""
        self._used.discard(slot)
        if self._used:
            return False
        for layer in self.layers.values():
            layer.adapters = None
            layer.join()
        self._slots = self._rank = 0
        self._kept.clear()
        self.rows = None
        return True

    def enter(self, slots: torch.Tensor | None, rows: int) -> None:
        """Take the slot of each of a step's first rows, -1 for the base; None if all ``rows`` are of the base."""
        if slots is None or not self._adapted():
            self.rows = None
        elif rows > _KEPT_ROWS:
            self.rows = self._make(rows)
        else:
            # Captured steps need it where it is.
            self.rows = self._kept.get(rows) or self._kept.setdefault(rows, self._make(rows))
        if self.rows is not None and slots is not None:
            self.rows.put(slots.tolist())

    def start(self) -> None:
        """Begin a step on the device."""
        if self.rows is not None and len(self.rows.slots) <= FEW:
            self._arrived.zero_()

    def _make(self, rows: int) -> LoraRows:
        return LoraRows.of(rows, self._adapted())

    def _adapted(self) -> list[LoraWeights]:
        return [layer.adapters for layer in self.layers.values() if layer.adapters is not None]

    def _grow(self, slots: int, rank: int, changed: Collection[tuple[int, LinearName]]) -> None:
        self._kept.clear()
        larger = {}
        try:
            for key, layer in self.layers.items():
                if layer.adapters is not None or key in changed:
                    larger[key] = grown(layer, slots, rank, self._dtype, self._device)
        except torch.OutOfMemoryError as error:
            raise AdapterError(
                "the GPU has not enough memory left for the adapter; unload another, or give the cache less."
            ) from error
        for key, adapters in larger.items():
            self.layers[key].adapters = adapters
            self.layers[key].join()
        self._slots, self._rank = slots, rank
        if self.rows is not None:
            # Steps that follow those in flight are of the same rows.
            before, self.rows = self.rows, self._make(len(self.rows.slots))
            self.rows.take(before)
            self._kept[len(before.slots)] = self.rows


class AdaptedGpuLinear:
    """A linear layer and the adapters beside it; see :class:`~tuneserve.model._gpu_linear.GpuLinear`.

    ``after`` is the layer that takes what this one has gated, if it does. Rows that this one gets may be beside their
    shrinks already.
    """

    def __init__(
        self, base: GpuLinear, layer: AdaptedLayer, adapters: GpuAdapters, after: AdaptedLayer | None = None
    ) -> None:
        self._base, self._layer, self._adapters, self._after = base, layer, adapters, after

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what the base keeps."""
        return self._base.tensors()

    def product(self, x: torch.Tensor, out: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Write the product of ``x``, and each row's delta, to ``out``."""
        if (call := self._call(self._layer)) is None:
            return self._base.product(x, out, norm)
        if isinstance(self._base, DenseGpuLinear):
            if len(x) <= FEW:
                return self._few(self._base, call, x, out, norm=norm)
            if self._layer.joined is not None:
                rows = _join(call, x, self._layer.joined, norm)
                return write_product(rows, self._layer.joined, self._base.bias, out)
        x = x if norm is None else norm(x)
        return _expand(call, x, self._base.product(x, out))

    def gated(self, x: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Return the gated product, each row's delta in both halves: ``out``, or beside the shrinks of what follows."""
        call = self._call(self._layer)
        if call is not None and len(x) <= FEW and isinstance(self._base, DenseGpuLinear):
            return self._few(self._base, call, x, out, norm=norm, gated=True)
        if call is not None and self._layer.joined is None:
            x = norm(x)
            self._base.product(x, scratch)
            lora_shrink(x, call.weights, call.rows)
            return lora_gate(call.weights, call.rows, scratch, out)
        if (beside := self._beside(x)) is not None:
            self.product(x, scratch, norm)
            return lora_join_gate(scratch, beside[0].weights, beside[0].rows, beside[1])
        if call is None:
            return self._base.gated(x, out, scratch, norm)
        return gate(self.product(x, scratch, norm), out)

    def add(self, x: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add the product of ``x``, and each row's delta, to ``hidden``."""
        if (call := self._call(self._layer)) is None:
            self._base.add(x, hidden)
        elif isinstance(self._base, DenseGpuLinear) and len(x) <= FEW:
            self._few(self._base, call, x, hidden, residual=hidden)
        elif isinstance(self._base, DenseGpuLinear) and self._layer.joined is not None:
            if self._base.bias is not None:
                hidden.add_(self._base.bias)
            hidden.addmm_(_join(call, x, self._layer.joined), self._layer.joined.T)
        else:
            self._base.add(x, hidden)
            _expand(call, x, hidden)

    def _call(self, layer: AdaptedLayer) -> LoraCall | None:
        rows, weights = self._adapters.rows, layer.adapters
        return None if rows is None or weights is None else LoraCall(weights, rows, layer.arrived)

    def _beside(self, x: torch.Tensor) -> tuple[LoraCall, torch.Tensor] | None:
        """Return the deltas of the layer after, and room for its rows beside their shrinks, if it takes them so."""
        if self._after is None or self._after.joined is None or len(x) <= FEW:
            return None
        call = self._call(self._after)
        return None if call is None else (call, x.new_empty(len(x), self._after.joined.shape[1]))

    def _few(
        self, base: DenseGpuLinear, call: LoraCall, x: torch.Tensor, out: torch.Tensor, *,
        norm: Norm | None = None, residual: torch.Tensor | None = None, gated: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        weight, bias = base.weight, base.bias
        if len(x) == 1:
            scale, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            return matvec(x, weight, norm=scale, eps=eps, bias=bias, residual=residual, gated=gated, lora=call, out=out)
        x = x if norm is None else norm(x)
        return skinny(x, weight, bias=bias, residual=residual, gated=gated, lora=call, out=out)


def _join(call: LoraCall, x: torch.Tensor, joined: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
    """Return rows, normed where there is a norm, beside their shrinks, where they are not so already."""
    if x.shape[1] == joined.shape[1]:
        return x
    weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
    out = x.new_empty(len(x), joined.shape[1])
    return lora_join(x, call.weights, call.rows, out, norm=weight, eps=eps)


def _expand(call: LoraCall, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    lora_shrink(x, call.weights, call.rows)
    return lora_expand(call.weights, call.rows, out)


def adapted(weights: GpuWeights, adapters: GpuAdapters) -> GpuWeights:
    """Return the same weights with adapters beside them."""
    layers = list(weights.layers)
    for (index, name), layer in adapters.layers.items():
        base = getattr(layers[index], name)
        layer.base = base if isinstance(base, DenseGpuLinear) else None
        after = adapters.layers.get((index, "down")) if name == "gate_up" else None
        linear = AdaptedGpuLinear(base, layer, adapters, after)
        layers[index] = replace(layers[index], **{name: linear})  # type: ignore[arg-type]
    return replace(weights, layers=tuple(layers))
