"""LoRA (arXiv:2106.09685): W' = W + scaling * B @ A."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneserve.adapters._config import CONFIG_FILE, LoraConfig, read_lora_config
from tuneserve.checkpoint import Checkpoint, open_safetensors
from tuneserve.errors import AdapterError, CheckpointError

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
# PEFT leaves the adapter's name out when it saves; files written by hand may carry it ("lora_A.default.weight").
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_FLOATS = ("F32", "F16", "BF16", "F64")
_LISTED = 8


@dataclass(frozen=True)
class LoraAdapter:
    """An opened adapter; ``pairs`` maps each base weight to the names of its A (r, in) and B (out, r) tensors."""

    directory: Path
    config: LoraConfig
    checkpoint: Checkpoint
    pairs: Mapping[str, tuple[str, str]]

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that this adapter belongs to a base whose weights have these names and shapes.

        Raises:
            AdapterError: it does not; all mismatches are listed: weights the base lacks, shapes that differ, and
                modules that are a target but have no delta in the file, or the other way round.
        """
        problems = []
        for weight in self.pairs:
            if weight not in shapes:
                problems.append(f"{_module(weight)} is not in the base")
            elif (ours := self._shape(weight)) != shapes[weight]:
                problems.append(f"{_module(weight)} is {_by(ours)} here and {_by(shapes[weight])} in the base")
            elif not self.config.is_target(_module(weight)):
                problems.append(f"{_module(weight)} has a delta in the file but is not a target")
        for weight, shape in shapes.items():
            module = _module(weight)
            is_linear = weight.endswith(".weight") and len(shape) == 2
            if is_linear and weight not in self.pairs and self.config.is_target(module):
                problems.append(f"{module} is a target but has no delta in the file")
        if problems:
            more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
            raise AdapterError(
                f"{self.directory} does not fit this base: {'; '.join(problems[:_LISTED])}{more}; "
                "name the base that it was trained on with --base."
            )

    def merge(self, weight: str, tensor: "torch.Tensor", dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        """Return the base's ``tensor`` with its delta added in float32 and rounded once to ``dtype``.

        The dtype is the tensor's own unless given; a weight without a delta is only converted.

        Raises:
            AdapterError: the sum is not finite, or too large for the dtype.
        """
        import torch

        dtype = dtype or tensor.dtype
        if weight not in self.pairs:
            return tensor.to(dtype)
        name_a, name_b = self.pairs[weight]
        a, b = self.checkpoint.read(name_a).float(), self.checkpoint.read(name_b).float()
        merged = torch.addmm(tensor.float(), b, a, alpha=self.config.scaling(_module(weight))).to(dtype)
        if not torch.isfinite(merged).all():
            raise AdapterError(
                f"{_module(weight)} is not finite once merged in {str(dtype).removeprefix('torch.')}; "
                "check the adapter and the base for NaN, or use a bfloat16 base."
            )
        return merged

    def _shape(self, weight: str) -> tuple[int, ...]:
        name_a, name_b = self.pairs[weight]
        return self.checkpoint.tensors[name_b].shape[0], self.checkpoint.tensors[name_a].shape[1]


def open_adapter(directory: Path) -> LoraAdapter:
    """Open the LoRA adapter in ``directory``, reading its configuration and its file's header.

    Raises:
        AdapterError: it is pickled, malformed, or has anything that is not understood.
    """
    config = read_lora_config(directory)
    path = directory / WEIGHTS_FILE
    if not path.exists():
        if (directory / _PICKLE_FILE).exists():
            raise AdapterError(
                f"{directory / _PICKLE_FILE} is pickled, which is never loaded because it can run code; "
                "save the adapter as safetensors."
            )
        raise AdapterError(f"{path} is missing; point to the directory that training wrote.")
    try:
        checkpoint = open_safetensors(path)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    return LoraAdapter(directory, config, checkpoint, _pairs(path, config, checkpoint))


def _pairs(path: Path, config: LoraConfig, checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    sides: dict[str, dict[str, str]] = {}
    unknown = []
    for name in checkpoint.tensors:
        match = _TENSOR.fullmatch(name)
        if match is None:
            unknown.append(name)
        elif sides.setdefault(match["module"], {}).setdefault(match["side"], name) != name:
            raise AdapterError(f"{path} has several adapters in it ({name}); save one adapter per file.")
    if unknown:
        raise AdapterError(
            f"{path} has {len(unknown)} tensors that are not plain LoRA, {unknown[0]!r} first; "
            "merge such an adapter with PEFT and use the result."
        )
    if not sides:
        raise AdapterError(f"{path} has no LoRA tensors in it; save the adapter again.")

    for module, names in sides.items():
        if len(names) != 2:
            raise AdapterError(f"{path} has only one of lora_A and lora_B for {module}; save the adapter again.")
        a, b = checkpoint.tensors[names["A"]], checkpoint.tensors[names["B"]]
        if a.dtype not in _FLOATS or b.dtype not in _FLOATS:
            raise AdapterError(f"{module} in {path} is {a.dtype}, not a 16- or 32-bit float; save it in bfloat16.")
        rank = config.rank(module)
        if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] == b.shape[1] == rank:
            raise AdapterError(
                f"{module} in {path} has A {_by(a.shape)} and B {_by(b.shape)} where {CONFIG_FILE} says rank {rank}; "
                "the two files do not belong together."
            )
    return {f"{module}.weight": (names["A"], names["B"]) for module, names in sides.items()}


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
