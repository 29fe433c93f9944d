"""A GGUF file before any of its bytes: what it says of the model, and where each tensor will lie. No torch here."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.artifacts.gguf._header import StoredTensor, Value, lay_out
from tuneserve.artifacts.gguf._metadata import Model, read_model
from tuneserve.artifacts.gguf._mix import tensor_types
from tuneserve.artifacts.gguf._parts import Plan, plan_parts
from tuneserve.artifacts.gguf._tokenizer import tokenizer_metadata
from tuneserve.artifacts.gguf._types import PRESETS
from tuneserve.checkpoint import TensorSpec

_QUANTISATION_VERSION = 2


@dataclass(frozen=True)
class Layout:
    """A file of ``size`` bytes that begins with ``head``; ``types`` of the weights, ``placed`` all tensors."""

    metadata: Mapping[str, Value]
    types: Mapping[str, str]
    head: bytes
    placed: tuple[StoredTensor, ...]
    size: int


@dataclass(frozen=True)
class Description:
    """What all presets of one model share."""

    model: Model
    plan: Plan
    tokenizer: Mapping[str, Value]

    def lay_out(self, preset: str, importance: Collection[str] | None = None) -> Layout:
        """Plan the file of ``preset``, a key of :data:`PRESETS`; ``importance`` as in :func:`tensor_types`.

        Raises:
            InputError: the preset needs an importance matrix.
        """
        types = tensor_types(preset, self.plan.shapes, self.model.shape, importance)
        metadata = {**self._general(preset), **self.model.metadata, **self.tokenizer}
        made = [StoredTensor(name, "F32", (factors.count,)) for name, factors in self.model.tensors.items()]
        weights = [StoredTensor(name, types[name], shape) for name, shape in self.plan.shapes.items()]
        head, placed, size = lay_out(metadata, [*made, *weights])
        return Layout(metadata, types, head, placed, size)

    def _general(self, preset: str) -> dict[str, Value]:
        return {
            "general.architecture": self.model.shape.architecture,
            "general.type": "model",
            "general.size_label": _size_label(sum(math.prod(shape) for shape in self.plan.shapes.values())),
            "general.file_type": PRESETS[preset].file_type,
            "general.quantization_version": _QUANTISATION_VERSION,
        }


def describe(
    specs: Mapping[str, TensorSpec],
    config: Mapping[str, Any],
    tokenizer_dir: Path | None,
    name: str,
    model_dir: Path | None = None,
) -> Description:
    """Read what a GGUF file of a model says; arguments and errors are those of :class:`GgufFormat`."""
    model = read_model(config)
    plan = plan_parts(model, specs)
    return Description(model, plan, tokenizer_metadata(tokenizer_dir, name, model.vocab_size, config, model_dir))


def file_name(name: str, preset: str) -> str:
    """Return what the file of a model called ``name`` is called."""
    stem = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
    return f"{stem}-{preset.upper()}.gguf"


def _size_label(parameters: int) -> str:
    for letter, unit in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{letter}"
    return f"{parameters / 1000:.3g}K"
