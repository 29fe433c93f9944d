"""From a model directory to its weights, dequantised as they are read where they are quantised."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tuneserve.checkpoint._read import Checkpoint, open_checkpoint
from tuneserve.checkpoint._tensor import WeightReader
from tuneserve.errors import CheckpointError

_READERS: Mapping[str, str] = {
    "compressed-tensors": "tuneserve.checkpoint.quantised.compressed_tensors:open_compressed_tensors",
}


def open_weights(directory: Path, config: Mapping[str, Any]) -> WeightReader:
    """Open the weights in ``directory``, which ``config`` (its ``config.json``) describes.

    Raises:
        CheckpointError: the weights are missing or malformed, or are quantised in a way that cannot be read.
    """
    checkpoint = open_checkpoint(directory)
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return checkpoint
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise CheckpointError(
            f"{directory} is quantised with {str(method)[:40]!r}, which cannot be read; pass the 16-bit model instead."
        )
    module, _, function = reader.partition(":")
    opener: Callable[[Checkpoint, Mapping[str, Any]], WeightReader] = getattr(import_module(module), function)
    return opener(checkpoint, config)
