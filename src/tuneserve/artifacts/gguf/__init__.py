"""GGUF files for llama.cpp and Ollama: one merged model, with its tokenizer, quantised as llama.cpp itself would."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuneserve.artifacts.gguf._describe import Description, describe, file_name
from tuneserve.artifacts.gguf._types import PRESETS, gguf_type

if TYPE_CHECKING:
    from tuneserve.artifacts.gguf._format import GgufFormat
    from tuneserve.artifacts.gguf._imatrix import Imatrix, compute_imatrix

__all__ = ["PRESETS", "Description", "GgufFormat", "Imatrix", "compute_imatrix", "describe", "file_name", "gguf_type"]

# Imported when first asked for, because they need torch, and a description does not.
_HOMES = {"GgufFormat": "_format", "Imatrix": "_imatrix", "compute_imatrix": "_imatrix"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
