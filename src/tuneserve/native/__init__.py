"""The native engine."""

from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._load import EngineConfig

__all__ = ["EngineConfig", "NativeCore", "Output"]
