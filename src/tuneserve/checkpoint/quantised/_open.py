"""From a model directory to its weights, dequantised as they are read where they are quantised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve.checkpoint._read import open_checkpoint
from tuneserve.checkpoint._tensor import WeightReader
from tuneserve.errors import CheckpointError


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
    raise CheckpointError(
        f"{directory} is quantised with {str(method)[:40]!r}, which cannot be read; pass the 16-bit model instead."
    )
