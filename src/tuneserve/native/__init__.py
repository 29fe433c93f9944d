"""The native engine: continuous batching over a fused decoder."""

from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._llm import LLM, Completion
from tuneserve.native._load import EngineConfig

__all__ = ["LLM", "Completion", "EngineConfig", "NativeCore", "Output"]
