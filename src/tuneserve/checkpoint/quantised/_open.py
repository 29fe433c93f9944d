"""From a model directory to its weights, dequantised as they are read where they are quantised."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tuneserve.checkpoint._read import Checkpoint, open_checkpoint
from tuneserve.checkpoint._tensor import WeightReader
from tuneserve.errors import CheckpointError

_READERS: Mapping[str, str] = {
    "bitsandbytes": "tuneserve.checkpoint.quantised._bitsandbytes:open_bitsandbytes",
    "compressed-tensors": "tuneserve.checkpoint.quantised.compressed_tensors:open_compressed_tensors",
    "fbgemm_fp8": "tuneserve.checkpoint.quantised._fp8:open_fp8",
    "fp8": "tuneserve.checkpoint.quantised._fp8:open_fp8",
    "mxfp4": "tuneserve.checkpoint.quantised._mxfp4:open_mxfp4",
}


def open_weights(directory: Path, config: Mapping[str, Any]) -> WeightReader:
    """Open the weights in ``directory``, which ``config`` (its ``config.json``) describes.

    Raises:
        CheckpointError: the weights are missing or malformed, or are quantised in a way that cannot be read.
    """
    method = quantisation_method(config)
    if method is None:
        return open_checkpoint(directory)
    reader = _READERS.get(method)
    if reader is None:
        raise CheckpointError(
            f"{directory} is quantised with {method[:40]!r}, which cannot be read; use the 16-bit model that it was "
            f"made from (those quantised with {', '.join(sorted(_READERS))} can be read too)."
        )
    module, _, function = reader.partition(":")
    opener: Callable[[Checkpoint, Mapping[str, Any]], WeightReader] = getattr(import_module(module), function)
    return opener(open_checkpoint(directory), {**config, "quantization_config": _quantisation(config)})


def quantisation_method(config: Mapping[str, Any]) -> str | None:
    """Return how the weights that ``config`` describes are quantised ("bitsandbytes"); None where they are not.

    Raises:
        CheckpointError: the config says that they are, but not how.
    """
    quantisation = _quantisation(config)
    if quantisation is None:
        return None
    if isinstance(quantisation, dict):
        if isinstance(method := quantisation.get("quant_method"), str) and method:
            return method
        # Before quant_method existed, bitsandbytes was the only one.
        if quantisation.get("load_in_4bit") is True or quantisation.get("load_in_8bit") is True:
            return "bitsandbytes"
    raise CheckpointError(
        "the quantization_config in config.json does not say how the weights are quantised (quant_method); "
        "download the model again."
    )


def _quantisation(config: Mapping[str, Any]) -> Any:
    """Return the ``quantization_config``, which multimodal models may have in that of their text model."""
    text = config.get("text_config")
    found = config.get("quantization_config")
    return text.get("quantization_config") if found is None and isinstance(text, dict) else found
