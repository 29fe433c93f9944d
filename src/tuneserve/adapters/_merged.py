"""A model with adapters merged in: what its tensors are, and each of them computed when it is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.adapters._dtypes import torch_dtype
from tuneserve.adapters._edits import Blocks, Edit
from tuneserve.checkpoint import TensorSpec, WeightReader
from tuneserve.errors import AdapterError

if TYPE_CHECKING:
    import torch

# 64 MB in float32.
_BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Recipe:
    """How a tensor of the merged model is made: read ``name`` from ``reader`` (zeros where it is None), edit, round.

    ``changed`` says that an adapter has a hand in it.
    """

    spec: TensorSpec
    reader: WeightReader | None
    name: str
    edits: tuple[Edit, ...] = ()
    changed: bool = False


@dataclass(frozen=True)
class MergedModel:
    """A :class:`~tuneserve.checkpoint.WeightReader` of the merged weights.

    ``config`` is the ``config.json`` that goes with them, ``changed`` the tensors that the adapters changed or added.
    """

    files: tuple[Path, ...]
    config: Mapping[str, Any]
    recipes: Mapping[str, Recipe]

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """What :meth:`read` returns for each name, in the order of the base."""
        return {name: recipe.spec for name, recipe in self.recipes.items()}

    @cached_property
    def changed(self) -> frozenset[str]:
        """The names of the tensors that the adapters changed or added."""
        return frozenset(name for name, recipe in self.recipes.items() if recipe.changed)

    def read(self, name: str) -> "torch.Tensor":
        """Compute one tensor: in float32, rounded once.

        Beside the tensor, the adapter's own tensors for it and 64 MB of blocks are in memory; in full float32 it is
        only where the base was altered before training.

        Raises:
            AdapterError: the result is not finite, or too large for its dtype.
            InputError: a file cannot be read.
        """
        import torch

        recipe = self.recipes[name]
        if recipe.reader is None:
            tensor = torch.zeros(recipe.spec.shape, dtype=torch_dtype(recipe.spec.dtype))
        else:
            tensor = recipe.reader.read(recipe.name)
            if not recipe.changed and recipe.reader.tensors[recipe.name].dtype == recipe.spec.dtype:
                return tensor
        dtype = torch_dtype(recipe.spec.dtype)
        if not recipe.edits:
            return _converted(tensor, recipe, dtype)
        result = tensor if tensor.dtype == dtype else torch.empty(recipe.spec.shape, dtype=dtype)
        blocks = _blocks(tensor)
        for edit in recipe.edits:
            blocks = edit.apply(blocks)
        for start, block in blocks():
            rounded = result[start : start + len(block)].copy_(block)
            if not torch.isfinite(rounded).all():
                raise _not_finite(recipe)
        return result


def _converted(tensor: "torch.Tensor", recipe: Recipe, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    result = tensor.to(dtype)
    narrowed = dtype == torch.float16 and tensor.dtype != dtype
    suspect = (recipe.changed or narrowed) and not torch.isfinite(result).all()
    if suspect and (recipe.changed or torch.isfinite(tensor).all()):
        raise _not_finite(recipe)
    return result


def _blocks(tensor: "torch.Tensor") -> Blocks:
    import torch

    rows = max(1, _BLOCK_ELEMENTS * len(tensor) // max(1, tensor.numel()))

    def copies() -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, len(tensor), rows):
            yield start, tensor[start : start + rows].to(torch.float32, copy=True)

    return copies


def _not_finite(recipe: Recipe) -> AdapterError:
    return AdapterError(
        f"{recipe.spec.name} is not finite once merged in {recipe.spec.dtype}; "
        "check the adapter and the base for NaN, or choose bfloat16."
    )
