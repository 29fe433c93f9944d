"""A merged model as one GGUF file."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tuneserve.artifacts._format import Format, Piece, PlannedFile
from tuneserve.artifacts.gguf._encode import encode, needs_ggml
from tuneserve.artifacts.gguf._ggml import load_ggml
from tuneserve.artifacts.gguf._header import StoredTensor, Value, lay_out
from tuneserve.artifacts.gguf._imatrix import Imatrix
from tuneserve.artifacts.gguf._metadata import Model, read_model
from tuneserve.artifacts.gguf._mix import tensor_types
from tuneserve.artifacts.gguf._parts import plan_parts, transform
from tuneserve.artifacts.gguf._tokenizer import tokenizer_metadata
from tuneserve.artifacts.gguf._types import PRESETS, tensor_bytes
from tuneserve.checkpoint import TensorSpec
from tuneserve.errors import InputError

_QUANTISATION_VERSION = 2
_MOST_IMPORTANT = 1e20


class GgufFormat(Format):
    """One GGUF file of a merged model; see :class:`tuneserve.artifacts._format.Format`.

    Args:
        specs: the merged model's weights, by the names of its Hugging Face checkpoint, in 16 or 32 bits.
        config: its ``config.json``.
        tokenizer_dir: where its tokenizer's files are.
        name: what it is called.
        preset: a key of :data:`PRESETS`; see :func:`gguf_type`.
        imatrix: how much each column matters.
        model_dir: where its ``generation_config.json`` is, if not beside the tokenizer.

    Raises:
        CheckpointError: the weights are not those that ``config`` describes.
        InputError: the preset needs an importance matrix or ``llama-cpp-python``.
        SpecError: the model cannot be said in a GGUF file as llama.cpp reads it.
        TextError: there is no tokenizer, or none that llama.cpp can run.
    """

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        config: Mapping[str, Any],
        tokenizer_dir: Path | None,
        name: str,
        preset: str,
        *,
        imatrix: Imatrix | None = None,
        model_dir: Path | None = None,
    ) -> None:
        self._model = read_model(config)
        plan = plan_parts(self._model, specs)
        self._parts = plan.parts
        self._importance = dict(imatrix.values) if imatrix else {}
        types = tensor_types(preset, plan.shapes, self._model.shape, imatrix.values if imatrix else None)
        self._check_importance(plan.shapes)
        if any(needs_ggml(kind, tensor in self._importance) for tensor, kind in types.items()):
            load_ggml()
        self.metadata = _general(self._model, preset, plan.shapes) | dict(self._model.metadata)
        self.metadata |= tokenizer_metadata(tokenizer_dir, name, self._model.vocab_size, config, model_dir)
        made = {key: StoredTensor(key, "F32", tuple(value.shape)) for key, value in self._model.tensors.items()}
        weights = [StoredTensor(key, types[key], shape) for key, shape in plan.shapes.items()]
        head, placed, size = lay_out(self.metadata, [*made.values(), *weights])
        self._placed = {tensor.name: tensor for tensor in placed}
        stem = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
        self._file = f"{stem}-{preset.upper()}.gguf"
        self._files = {self._file: PlannedFile(head + self._made_tensors(len(head)), size)}

    @property
    def files(self) -> Mapping[str, PlannedFile]:
        """The one file, by name."""
        return MappingProxyType(self._files)

    def candidate(self, directory: Path) -> Path | None:
        """Return the file."""
        return directory / self._file

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """Return where the bytes made from the weight ``name`` go; none for buffers, and for a tied model's head."""
        found = []
        for part in self._parts[name]:
            tensor = self._placed[part.name]
            if part.expert is None:
                found.append(Piece(self._file, tensor.offset, tensor.nbytes))
            else:
                nbytes = tensor_bytes(tensor.type, tensor.shape[1:])
                found.append(Piece(self._file, tensor.offset + part.expert * nbytes, nbytes))
        return tuple(found)

    def encode(self, name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the bytes of each of :meth:`pieces`.

        Raises:
            CheckpointError: a value is not finite or does not fit the type.
        """
        encoded = []
        for part in self._parts[name]:
            importance = self._importance.get(part.name)
            if importance is not None and part.expert is not None:
                importance = importance[part.expert]
            values = transform(self._model, part, tensor)
            encoded.append(encode(self._placed[part.name].type, values, importance))
        return tuple(encoded)

    def write_side_files(self, directory: Path) -> None:
        """Write nothing: the file holds configuration, tokenizer and template."""

    def _made_tensors(self, start: int) -> bytes:
        data = bytearray()
        for name, tensor in self._model.tensors.items():
            data += bytes(self._placed[name].offset - start - len(data))
            data += tensor.contiguous().numpy().tobytes()
        return bytes(data)

    def _check_importance(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, values in self._importance.items():
            shape = shapes.get(name, ())
            wanted = shape[-1:] if len(shape) < 3 else (shape[0], shape[-1])
            fits = tuple(values.shape) == wanted and values.dtype == torch.float32
            if not fits or not bool(((values >= 0) & (values <= _MOST_IMPORTANT)).all()):
                raise InputError(
                    f"the importance matrix has {name} not as the model has it; compute it from this model."
                )


def _general(model: Model, preset: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    return {
        "general.architecture": model.shape.architecture,
        "general.type": "model",
        "general.size_label": _size_label(sum(math.prod(shape) for shape in shapes.values())),
        "general.file_type": PRESETS[preset].file_type,
        "general.quantization_version": _QUANTISATION_VERSION,
    }


def _size_label(parameters: int) -> str:
    for letter, unit in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{letter}"
    return f"{parameters / 1000:.3g}K"
