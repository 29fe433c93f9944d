"""The native engine: continuous batching over a fused decoder."""

from tuneserve.native._beam import Beam, BeamRules, search
from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._llm import LLM, Score
from tuneserve.native._load import EngineConfig
from tuneserve.native._offline import outputs
from tuneserve.native._run import Completion
from tuneserve.native._settings import GenerationSettings, read_generation_settings

__all__ = [
    "LLM",
    "Beam",
    "BeamRules",
    "Completion",
    "EngineConfig",
    "GenerationSettings",
    "NativeCore",
    "Output",
    "Score",
    "outputs",
    "read_generation_settings",
    "search",
]
