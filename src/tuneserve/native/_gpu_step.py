"""Which of the two ways a step is computed on an NVIDIA GPU: Triton kernels in graphs where it can be, else PyTorch."""

import importlib.util
import logging
from typing import Any

import torch

from tuneserve.errors import InputError
from tuneserve.model import Decoder, Weights
from tuneserve.native._decoders import AnyDecoder
from tuneserve.spec import ModelSpec

# What the kernels are written for; below, there is no bfloat16 and no asynchronous copy.
_LEAST_CAPABILITY = (8, 0)
_BITS: dict[str, Any] = {"auto": None, "dequantised": None, "int8": "int8", "int4": "int4"}
_logger = logging.getLogger("tuneserve.native")


def prepare_gpu_step(spec: ModelSpec, weights: Weights, context_length: int, sequences: int, bits: str) -> AnyDecoder:
    """Return a decoder of up to ``sequences`` at once, saying why where it is the slower one.

    ``bits`` are the weights of :class:`~tuneserve.native.EngineConfig`.

    Raises:
        InputError: ``bits`` is not known, or the model cannot be quantised so.
    """
    if bits not in _BITS:
        raise InputError(f"the weights {bits!r} are not known; choose {', '.join(_BITS)}.")
    reasons = _reasons_against(weights)
    if not reasons:
        from tuneserve.model._gpu import GpuDecoder
        from tuneserve.model._gpu_reasons import gpu_reasons_against

        reasons = gpu_reasons_against(spec, weights, quantised=_BITS[bits] is not None)
        if not reasons:
            keep = bits == "auto"
            decoder = GpuDecoder(spec, weights, context_length, sequences, bits=_BITS[bits], keep=keep)
            if decoder.weights.kept:
                _logger.info("%d weights stay in the bits that they are stored in", decoder.weights.kept)
            if decoder.weights.dequantised:
                _logger.warning(
                    "%d weights are dequantised: no kernel computes with how they are stored",
                    decoder.weights.dequantised,
                )
            return decoder
    if _BITS[bits] is not None:
        raise InputError(f"{bits} weights cannot be had on this GPU ({'; '.join(reasons)}); leave weights at auto.")
    _logger.warning("steps run without Triton's kernels, which is slower: %s", "; ".join(reasons))
    return Decoder(spec, weights.loaded(), context_length)


def _reasons_against(weights: Weights) -> list[str]:
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed")
    if torch.cuda.get_device_capability(weights.embedding.device) < _LEAST_CAPABILITY:
        reasons.append("the GPU is older than compute capability 8.0")
    if weights.embedding.dtype == torch.float32:
        reasons.append("its weights are float32, which matrix units would round")
    return reasons
