"""The tensors of a GGUF file as those of a Hugging Face checkpoint, dequantised as they are read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneserve.checkpoint import GgufFile, GgufTensor, StoredCodes, TensorSpec, checked, read_codes, read_rows
from tuneserve.errors import CheckpointError
from tuneserve.spec import GgufPart, gguf_parts, hf_name

if TYPE_CHECKING:
    import torch

_MAX_EXPERTS = 4096
# A matrix of one row in Hugging Face's checkpoints, a vector in GGUF's.
_ONE_ROW = ".shared_expert_gate.weight"


@dataclass(frozen=True)
class GgufWeights:
    """A :class:`~tuneserve.checkpoint.WeightReader` over a GGUF file; made by :func:`gguf_weights`.

    All tensors have one ``dtype``: F32 or F16 where all matrices in the file have it, else BF16.
    """

    file: GgufFile
    family: str
    heads: int
    kv_heads: int
    dtype: str
    tensors: Mapping[str, TensorSpec]

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or the parts of a split one."""
        return self.file.paths

    def read(self, name: str) -> "torch.Tensor":
        """Read one tensor into memory of its own, on the CPU; values are rounded once, from float32.

        Raises:
            CheckpointError: the file has become shorter, or holds values that are not finite in the dtype.
        """
        import torch

        spec = self.tensors[name]
        parts = gguf_parts(self.family, name)
        shape = _swapped(spec.shape) if parts[0].transposed else spec.shape
        columns = _Rows.of(self.file.tensors[parts[0].name]).columns
        flat = torch.empty(math.prod(shape) // columns, columns, dtype=_torch_dtype(spec.dtype))
        for part in parts:
            self._read_part(part, flat)
        result = flat.view(shape)
        return result.transpose(-1, -2).contiguous() if parts[0].transposed else result

    def storage(self, name: str) -> str | None:
        """Return the type of one tensor in the file, None if that is a float; see ``CodeReader``."""
        kind = self.file.tensors[gguf_parts(self.family, name)[0].name].kind
        return None if kind in ("F32", "F16", "BF16") else kind

    def codes(self, name: str) -> StoredCodes | None:
        """Read one weight as it is stored; see :class:`~tuneserve.checkpoint.CodeReader`.

        Raises:
            CheckpointError: the file has become shorter, or holds scales that are not finite.
        """
        parts = gguf_parts(self.family, name)
        part = parts[0]
        plain = part.expert is None and part.rows == "all" and not part.plus_one and not part.transposed
        if len(parts) > 1 or not plain:
            return None
        tensor = self.file.tensors[part.name]
        found = checked(f"{part.name} in {tensor.path}", read_codes(tensor))
        if found is None or part.heads is None:
            return found
        order = self._destination(part, _Rows.of(tensor).axis, 0, len(found.codes)).argsort()
        return found.reordered(order)

    def _read_part(self, part: GgufPart, flat: "torch.Tensor") -> None:
        import torch

        tensor = self.file.tensors[part.name]
        rows = _Rows.of(tensor)
        stored = math.prod(tensor.shape[:-1])
        count = stored if part.expert is None else stored // tensor.shape[0]
        for start, values in read_rows(tensor, (part.expert or 0) * count, count):
            slab = torch.from_numpy(values).view(-1, rows.columns)
            slab = (slab - 1 if part.plus_one else slab).to(flat.dtype)
            if not torch.isfinite(slab).all():
                raise CheckpointError(
                    f"{part.name} in {tensor.path} has values that are not finite in {str(flat.dtype)[6:]}; "
                    "download the file again, or use one of another type."
                )
            first = start * tensor.shape[-1] // rows.columns
            flat.index_copy_(0, self._destination(part, rows.axis, first, len(slab)), slab)

    def _destination(self, part: GgufPart, axis: int, first: int, count: int) -> "torch.Tensor":
        """Return the Hugging Face rows of ``count`` rows of a part, which has ``axis`` of them per stacked matrix."""
        import torch

        index = torch.arange(first, first + count)
        row = index % axis
        if part.heads is not None:
            size = axis // (self.heads if part.heads == "q" else self.kv_heads)
            within = row % size
            row = row - within + within % 2 * (size // 2) + within // 2
        if part.rows == "all":
            return index // axis * axis + row
        placed = {"first half": row, "second half": axis + row, "even": 2 * row, "odd": 2 * row + 1}[part.rows]
        return index // axis * (2 * axis) + placed


def gguf_weights(file: GgufFile, family: str, heads: int, kv_heads: int) -> GgufWeights:
    """Name and shape the tensors of ``file``, in the order of their data.

    Raises:
        CheckpointError: tensors are missing, or their shapes do not go together.
        SpecError: the family has no such tensor.
    """
    dtype = _common_dtype(file)
    specs: dict[str, TensorSpec] = {}
    for tensor in file.tensors.values():
        for name in _names(family, tensor):
            if name not in specs:
                parts = gguf_parts(family, name)
                specs[name] = TensorSpec(name, dtype, _shape(file, name, parts, heads, kv_heads))
    return GgufWeights(file, family, heads, kv_heads, dtype, specs)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tensor seen as rows: ``axis`` of them per stacked matrix, of ``columns`` values; a vector's rows have one."""

    axis: int
    columns: int

    @classmethod
    def of(cls, tensor: GgufTensor) -> "_Rows":
        if len(tensor.shape) == 1 or tensor.name.endswith(".bias"):
            return cls(tensor.shape[-1], 1)
        return cls(tensor.shape[-2], tensor.shape[-1])


def _names(family: str, tensor: GgufTensor) -> list[str]:
    name = hf_name(family, tensor.name)
    if name is None:
        return []
    if "{expert}" not in name:
        return [name]
    if len(tensor.shape) < 2 or tensor.shape[0] > _MAX_EXPERTS:
        raise CheckpointError(f"{tensor.name} in {tensor.path} has an impossible shape; download the file again.")
    return [name.format(expert=expert) for expert in range(tensor.shape[0])]


def _shape(file: GgufFile, name: str, parts: tuple[GgufPart, ...], heads: int, kv_heads: int) -> tuple[int, ...]:
    if missing := [part.name for part in parts if part.name not in file.tensors]:
        raise CheckpointError(f"{file.paths[0]} lacks the tensor {missing[0]!r}; download it again.")
    tensors = [file.tensors[part.name] for part in parts]
    first, part, axis = tensors[0], parts[0], _Rows.of(tensors[0]).axis
    per_head = 2 * (kv_heads if part.heads == "kv" else heads)
    matrix = not first.name.endswith(".bias") and (part.transposed or part.rows != "all")
    fits = all(tensor.shape == first.shape for tensor in tensors) and len(first.shape) >= 1 + matrix
    if not fits or (part.heads is not None and axis % per_head):
        raise CheckpointError(f"{first.name} in {first.path} has a shape that does not fit; download the file again.")
    shape = first.shape if part.expert is None else first.shape[1:]
    if part.rows != "all":
        vector = first.name.endswith(".bias")
        shape = (*shape[:-1], 2 * shape[-1]) if vector else (*shape[:-2], 2 * shape[-2], shape[-1])
    if name.endswith(_ONE_ROW):
        return (1, math.prod(shape))
    return _swapped(shape) if part.transposed else shape


def _swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2])


def _common_dtype(file: GgufFile) -> str:
    kinds = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return next(iter(kinds)) if kinds in ({"F32"}, {"F16"}) else "BF16"


def _torch_dtype(name: str) -> "torch.dtype":
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
