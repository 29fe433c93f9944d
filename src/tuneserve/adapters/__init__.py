"""Trained deltas over a base: their configuration, and their arithmetic one tensor at a time."""

from tuneserve.adapters._config import LoraConfig, read_lora_config
from tuneserve.adapters._lora import LoraAdapter, open_adapter

__all__ = ["LoraAdapter", "LoraConfig", "open_adapter", "read_lora_config"]
