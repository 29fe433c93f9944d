"""An adapter that stays beside the weights: the low-rank deltas of the decoder's linear layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from tuneserve.adapters import LowRankDelta
from tuneserve.errors import AdapterError
from tuneserve.spec import ModelSpec, layer_names, plain_name, tensor_shapes

LinearName = Literal["qkv", "output", "gate_up", "down"]
LINEARS: tuple[LinearName, ...] = get_args(LinearName)
_LISTED = 8


@dataclass(frozen=True)
class Delta:
    """Adds ``b @ a`` to ``len(b)`` rows, from ``first`` on, of a linear layer's weight (out, in).

    ``a`` is (rank, in) and ``b``, which the scaling is part of, (rows, rank), both in the dtype of the model.
    """

    first: int
    a: torch.Tensor
    b: torch.Tensor


AdapterWeights = Mapping[tuple[int, LinearName], tuple[Delta, ...]]
"""The deltas of an adapter, by the number of the layer and by the linear layer whose fused weight they belong to."""


@dataclass(frozen=True)
class _Place:
    layer: int
    linear: LinearName
    first: int


def linear_shapes(spec: ModelSpec) -> dict[tuple[int, LinearName], tuple[int, int]]:
    """Return (out, in) of every linear layer that takes deltas, fused as the decoder has it."""
    found: dict[tuple[int, LinearName], tuple[int, int]] = {}
    for _, place, (rows, columns) in _pieces(spec):
        found[place.layer, place.linear] = (place.first + rows, columns)
    return found


def place_deltas(spec: ModelSpec, names: Mapping[str, object]) -> dict[str, _Place]:
    """Return where in the decoder the tensors ``names`` of a checkpoint of ``spec`` are.

    Raises:
        AdapterError: some are in none of the linear layers that take deltas; all are listed.
    """
    places = {name: place for name, place, _ in _pieces(spec)}
    found = {name: places.get(plain_name(name) or "" if spec.wrapped else name) for name in names}
    if missing := [name for name, place in found.items() if place is None]:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise AdapterError(
            f"the adapter changes {', '.join(missing[:_LISTED])}{more}, and only deltas of the linear layers of "
            "attention and of dense feed-forward layers stay unmerged; merge it with 'tuneserve export'."
        )
    return {name: place for name, place in found.items() if place is not None}


def load_deltas(spec: ModelSpec, deltas: Mapping[str, LowRankDelta], dtype: torch.dtype) -> AdapterWeights:
    """Read the deltas of a checkpoint's tensors into the CPU's memory.

    Raises:
        AdapterError: one is not part of a layer that takes deltas, or not finite in ``dtype``.
        CheckpointError: the adapter's file cannot be read.
    """
    found: dict[tuple[int, LinearName], list[Delta]] = {}
    for name, place in place_deltas(spec, deltas).items():
        a, b = (factor.to(dtype).contiguous() for factor in deltas[name].load())
        if not (a.isfinite().all() and b.isfinite().all()):
            kind = str(dtype).removeprefix("torch.")
            raise AdapterError(f"the adapter's delta of {name} is not finite in {kind}; train or save it again.")
        found.setdefault((place.layer, place.linear), []).append(Delta(place.first, a, b))
    return {key: tuple(sorted(group, key=lambda delta: delta.first)) for key, group in found.items()}


def _pieces(spec: ModelSpec) -> Iterator[tuple[str, _Place, tuple[int, int]]]:
    """Yield each tensor of those linear layers, where it is, and its shape; those of a fused weight in order."""
    shapes = tensor_shapes(spec)
    for layer in range(spec.layers):
        names = layer_names(spec, layer)
        for linear in LINEARS:
            modules = getattr(names, linear)
            first = 0
            for module in (modules,) if isinstance(modules, str) else modules:
                shape = shapes.get(f"{module}.weight")
                if shape is not None:
                    rows, columns = shape
                    yield f"{module}.weight", _Place(layer, linear, first), (rows, columns)
                    first += rows
