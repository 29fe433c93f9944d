"""The compressed-tensors layout of quantised weights, which vLLM, SGLang and Transformers load.

Format: https://github.com/vllm-project/compressed-tensors, release 0.20.
"""

from tuneserve.checkpoint.quantised.compressed_tensors._encoder import CT_ENCODERS
from tuneserve.checkpoint.quantised.compressed_tensors._reader import open_compressed_tensors

__all__ = ["CT_ENCODERS", "open_compressed_tensors"]
