"""A merged model as one GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tuneserve.artifacts._format import Format, Piece, PlannedFile
from tuneserve.artifacts.gguf._describe import describe, file_name
from tuneserve.artifacts.gguf._encode import encode, needs_ggml
from tuneserve.artifacts.gguf._ggml import load_ggml
from tuneserve.artifacts.gguf._imatrix import Imatrix
from tuneserve.artifacts.gguf._parts import transform
from tuneserve.artifacts.gguf._types import tensor_bytes
from tuneserve.checkpoint import TensorSpec
from tuneserve.errors import InputError

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
        described = describe(specs, config, tokenizer_dir, name, model_dir)
        self._model, self._parts = described.model, described.plan.parts
        self._importance = dict(imatrix.values) if imatrix else {}
        layout = described.lay_out(preset, imatrix.values if imatrix else None)
        self._check_importance(described.plan.shapes)
        if any(needs_ggml(kind, tensor in self._importance) for tensor, kind in layout.types.items()):
            load_ggml()
        self.metadata = layout.metadata
        self._placed = {tensor.name: tensor for tensor in layout.placed}
        self._file = file_name(name, preset)
        self._files = {self._file: PlannedFile(layout.head + self._made_tensors(len(layout.head)), layout.size)}

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
            data += tensor.compute().contiguous().numpy().tobytes()
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
