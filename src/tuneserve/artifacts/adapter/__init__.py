"""The adapter alone as an artifact: normalised for PEFT and vLLM, or as a GGUF adapter for llama.cpp and Ollama."""

from tuneserve.artifacts.adapter._gguf import write_gguf_lora
from tuneserve.artifacts.adapter._peft import write_lora

__all__ = ["write_gguf_lora", "write_lora"]
