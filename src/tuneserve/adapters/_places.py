"""Where in the native decoder a delta belongs: which layer and linear layer, which rows of its fused weight."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from tuneserve.spec import ModelSpec, layer_names, plain_name, tensor_shapes

LinearName = Literal["qkv", "output", "gate_up", "down"]
LINEARS: tuple[LinearName, ...] = get_args(LinearName)


@dataclass(frozen=True)
class Place:
    """The rows from ``first`` on of the weight ``linear`` in layer number ``layer``."""

    layer: int
    linear: LinearName
    first: int


def find_places(spec: ModelSpec, names: Iterable[str]) -> dict[str, Place | None]:
    """Return where the tensors ``names`` of a checkpoint are; None where in no linear layer that takes deltas."""
    places = {name: place for name, place, _ in _pieces(spec)}
    return {name: places.get((plain_name(name) or "") if spec.wrapped else name) for name in names}


def linear_shapes(spec: ModelSpec) -> dict[tuple[int, LinearName], tuple[int, int]]:
    """Return (out, in) of every linear layer that takes deltas, fused as the decoder has it."""
    found: dict[tuple[int, LinearName], tuple[int, int]] = {}
    for _, place, (rows, columns) in _pieces(spec):
        found[place.layer, place.linear] = (place.first + rows, columns)
    return found


def _pieces(spec: ModelSpec) -> Iterator[tuple[str, Place, tuple[int, int]]]:
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
                    yield f"{module}.weight", Place(layer, linear, first), (rows, columns)
                    first += rows
