"""GGUF files for llama.cpp and Ollama: one merged model, with its tokenizer, quantised as llama.cpp itself would."""

from tuneserve.artifacts.gguf._format import GgufFormat
from tuneserve.artifacts.gguf._imatrix import Imatrix, compute_imatrix
from tuneserve.artifacts.gguf._types import PRESETS, gguf_type

__all__ = ["PRESETS", "GgufFormat", "Imatrix", "compute_imatrix", "gguf_type"]
