"""Modelfiles for Ollama, whose template, stops and parameters come from the model's own files."""

from tuneserve.artifacts.ollama._format import OllamaFormat
from tuneserve.artifacts.ollama._modelfile import ollama_modelfile, write_modelfile

__all__ = ["OllamaFormat", "ollama_modelfile", "write_modelfile"]
