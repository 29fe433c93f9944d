"""An adapter that stays beside the weights: the low-rank deltas of the decoder's linear layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from tuneserve.adapters import LinearName, LowRankDelta
from tuneserve.errors import AdapterError


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


def load_deltas(deltas: Iterable[LowRankDelta], dtype: torch.dtype) -> AdapterWeights:
    """Read deltas into the CPU's memory.

    Raises:
        AdapterError: one is not finite in ``dtype``.
        CheckpointError: the adapter's file cannot be read.
    """
    found: dict[tuple[int, LinearName], list[Delta]] = {}
    for delta in deltas:
        a, b = (factor.to(dtype).contiguous() for factor in delta.load())
        if not (a.isfinite().all() and b.isfinite().all()):
            kind = str(dtype).removeprefix("torch.")
            raise AdapterError(f"the adapter's delta of {delta.name} is not finite in {kind}; train or save it again.")
        found.setdefault((delta.place.layer, delta.place.linear), []).append(Delta(delta.place.first, a, b))
    return {key: tuple(sorted(group, key=lambda delta: delta.first)) for key, group in found.items()}
