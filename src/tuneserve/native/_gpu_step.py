"""Which of the two ways a step is computed on an NVIDIA GPU: Triton kernels in graphs where it can be, else PyTorch."""

import importlib.util
import logging

import torch

from tuneserve.model import Decoder, Weights
from tuneserve.native._decoders import AnyDecoder
from tuneserve.spec import ModelSpec

# What the kernels are written for; below, there is no bfloat16 and no asynchronous copy.
_LEAST_CAPABILITY = (8, 0)
_logger = logging.getLogger("tuneserve.native")


def prepare_gpu_step(spec: ModelSpec, weights: Weights, context_length: int, sequences: int) -> AnyDecoder:
    """Return a decoder of up to ``sequences`` at once, saying why where it is the slower one."""
    reasons = _reasons_against(weights)
    if not reasons:
        from tuneserve.model._gpu import GpuDecoder, gpu_reasons_against

        reasons = gpu_reasons_against(spec, weights)
        if not reasons:
            return GpuDecoder(spec, weights, context_length, sequences)
    _logger.warning("steps run without Triton's kernels, which is slower: %s", "; ".join(reasons))
    return Decoder(spec, weights, context_length)


def _reasons_against(weights: Weights) -> list[str]:
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed")
    if torch.cuda.get_device_capability(weights.embedding.device) < _LEAST_CAPABILITY:
        reasons.append("the GPU is older than compute capability 8.0")
    if weights.embedding.dtype == torch.float32:
        reasons.append("its weights are float32, which matrix units would round")
    return reasons
