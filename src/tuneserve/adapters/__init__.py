"""Trained changes of a base: what an adapter is, and the merged model, one tensor at a time."""

from tuneserve.adapters._combine import Combination
from tuneserve.adapters._config import LoraConfig, read_lora_config
from tuneserve.adapters._ends import check_patterns_end
from tuneserve.adapters._merge import merge_model
from tuneserve.adapters._merged import MergedModel
from tuneserve.adapters._open import Adapter, LoraAdapter, PeftAdapter, WeightedAdapter, open_adapter
from tuneserve.adapters._places import LINEARS, LinearName, Place, linear_shapes
from tuneserve.adapters._unmerged import LowRankDelta, read_deltas

__all__ = [
    "LINEARS",
    "Adapter",
    "Combination",
    "LinearName",
    "LoraAdapter",
    "LoraConfig",
    "LowRankDelta",
    "MergedModel",
    "PeftAdapter",
    "Place",
    "WeightedAdapter",
    "check_patterns_end",
    "linear_shapes",
    "merge_model",
    "open_adapter",
    "read_deltas",
    "read_lora_config",
]
