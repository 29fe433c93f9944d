"""A model with adapters merged in: what its tensors are, and each of them computed when it is read."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.adapters._edits import Blocks, Edit
from tuneserve.checkpoint import CodeReader, RowReader, StoredCodes, TensorSpec, WeightReader, torch_dtype
from tuneserve.errors import AdapterError

if TYPE_CHECKING:
    import torch

# So much of a weight at a time stays in the processor's cache: merging is then as fast as hashing.
_BLOCK_ELEMENTS = 1 << 20


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

        Beside the tensor, the adapter's own tensors for it and a few blocks are in memory; in full float32 it is only
        where the base was altered before training.

        Raises:
            AdapterError: the result is not finite, or too large for its dtype.
            InputError: a file cannot be read.
        """
        import torch

        if (stored := self.stored(name)) is not None:
            reader, called = stored
            return reader.read(called)
        recipe = self.recipes[name]
        result = torch.empty(recipe.spec.shape, dtype=torch_dtype(recipe.spec.dtype))
        flat, done = result.view(-1), 0
        for block in self.blocks(name):
            flat[done : done + block.numel()] = block.view(-1)
            done += block.numel()
        return result

    def storage(self, name: str) -> str | None:
        """Return what the base's way of storing one tensor is called; see :class:`~tuneserve.checkpoint.CodeReader`."""
        recipe = self.recipes[name]
        return recipe.reader.storage(recipe.name) if isinstance(recipe.reader, CodeReader) else None

    def codes(self, name: str) -> StoredCodes | None:
        """Read one tensor as the base stores it; None where that is in full, or an adapter has a hand in it."""
        recipe = self.recipes[name]
        reader = recipe.reader
        if recipe.changed or recipe.edits or not isinstance(reader, CodeReader):
            return None
        return reader.codes(recipe.name)

    def stored(self, name: str) -> tuple[WeightReader, str] | None:
        """Return who reads a tensor that is as it is stored, and under which name; None where it is computed."""
        recipe = self.recipes[name]
        reader = recipe.reader
        if reader is None or recipe.edits or reader.tensors[recipe.name] != recipe.spec:
            return None
        return reader, recipe.name

    def blocks(self, name: str) -> Iterator["torch.Tensor"]:
        """Compute one tensor in blocks of consecutive rows, which together are what :meth:`read` returns.

        Each is contiguous and in memory of its own; of a plain checkpoint no more than a block is read at a time.

        Raises:
            AdapterError: the result is not finite, or too large for its dtype.
            InputError: a file cannot be read.
        """
        import torch

        recipe = self.recipes[name]
        dtype = torch_dtype(recipe.spec.dtype)
        stored = _stored_blocks(recipe)
        if not recipe.edits:
            for _, block in stored():
                yield _converted(block, recipe, dtype)
            return

        def copies() -> Iterator[tuple[int, torch.Tensor]]:
            scratch = torch.empty(0)
            for start, block in stored():
                if scratch.shape != block.shape:
                    scratch = torch.empty(block.shape)
                yield start, scratch.copy_(block)

        blocks: Blocks = copies
        for edit in recipe.edits:
            blocks = edit.apply(blocks)
        for _, block in blocks():
            rounded = block.to(dtype, copy=True)
            if not _is_finite(rounded):
                raise _not_finite(recipe)
            yield rounded


def _converted(tensor: "torch.Tensor", recipe: Recipe, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    result = tensor.to(dtype)
    narrowed = dtype == torch.float16 and tensor.dtype != dtype
    suspect = (recipe.changed or narrowed) and not _is_finite(result)
    if suspect and (recipe.changed or _is_finite(tensor)):
        raise _not_finite(recipe)
    return result


def _stored_blocks(recipe: Recipe) -> Blocks:
    """Return the blocks of what is on the disk, in its own dtype."""
    import torch

    shape = recipe.spec.shape
    if recipe.reader is None:
        zeros = torch.zeros(shape, dtype=torch_dtype(recipe.spec.dtype))
        return lambda: iter([(0, zeros)])
    inner = math.prod(shape[1:-1])
    rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    reader = recipe.reader
    if len(shape) < 2 or shape[0] <= rows:
        return lambda: iter([(0, reader.read(recipe.name))])

    def read() -> Iterator[tuple[int, torch.Tensor]]:
        whole = None if isinstance(reader, RowReader) else reader.read(recipe.name)
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            if isinstance(reader, RowReader):
                block = reader.read_rows(recipe.name, start * inner, stop * inner).view(stop - start, *shape[1:])
            else:
                assert whole is not None, "read above"
                block = whole[start:stop].clone()
            yield start, block

    return read


def _is_finite(tensor: "torch.Tensor") -> bool:
    import torch

    # A sum is several times faster than a mask, and rarely wrong the other way: then the mask decides.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _not_finite(recipe: Recipe) -> AdapterError:
    return AdapterError(
        f"{recipe.spec.name} is not finite once merged in {recipe.spec.dtype}; "
        "check the adapter and the base for NaN, or choose bfloat16."
    )
