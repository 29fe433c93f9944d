"""The adapter alone as an artifact: nothing of the base passes through."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuneserve.adapters import LoraAdapter, open_adapter
from tuneserve.artifacts._format import Format, Piece, PlannedFile
from tuneserve.artifacts.adapter import write_gguf_lora, write_lora
from tuneserve.errors import InputError
from tuneserve.sources import ResolvedSource, tokenizer_files


class _AdapterFormat(Format):
    def __init__(self, source: ResolvedSource) -> None:
        if source.adapter_dir is None:
            raise InputError(f"{source.name} is a whole model without an adapter; choose another method.")
        adapter = open_adapter(source.adapter_dir)
        if not isinstance(adapter, LoraAdapter):
            raise InputError(f"{source.name} is no LoRA, which is all that engines load unmerged; export merged_16bit.")
        self._source = source
        self._adapter = adapter

    @property
    def files(self) -> Mapping[str, PlannedFile]:
        """None: nothing is made from the base's weights."""
        return {}

    def pieces(self, name: str) -> tuple[Piece, ...]:  # noqa: ARG002
        """Return nothing."""
        return ()

    def encode(self, name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ARG002
        """Fail: no weight has pieces."""
        raise AssertionError(f"{name} has no pieces")


class LoraFormat(_AdapterFormat):
    """The adapter in PEFT's format, normalised."""

    def write_side_files(self, directory: Path) -> None:
        """Write the adapter, and its tokenizer where it has one of its own."""
        own = self._source.tokenizer_dir if self._source.tokenizer_dir != self._source.model_dir else None
        write_lora(self._adapter, directory, tokenizer_files(own) if own else ())

    def candidate(self, directory: Path) -> Path | None:
        """Return the directory."""
        return directory


class GgufLoraFormat(_AdapterFormat):
    """The adapter as a GGUF file for llama.cpp and Ollama.

    Args:
        config: the base's ``config.json``.
    """

    def __init__(self, source: ResolvedSource, config: Mapping[str, Any]) -> None:
        super().__init__(source)
        self._config = config

    def write_side_files(self, directory: Path) -> None:
        """Write the one file."""
        write_gguf_lora(self._adapter, self._config, directory / "adapter.gguf")

    def candidate(self, directory: Path) -> Path | None:  # noqa: ARG002
        """Return None: only llama.cpp applies it."""
        return None
