"""The one door from a source to its base's weights."""

from pathlib import Path
from typing import Any

from tuneserve.checkpoint import WeightReader
from tuneserve.checkpoint.quantised import open_weights
from tuneserve.sources._gguf import open_gguf_weights
from tuneserve.sources._resolve import MODEL_CONFIG, ResolvedSource, read_config


def open_model(source: ResolvedSource) -> tuple[WeightReader, dict[str, Any]]:
    """Open the weights of a source (of an adapter: its base), and read their ``config.json``; as :func:`open_files`."""
    return open_files(source.model_dir, source.weights_file)


def open_files(model_dir: Path, weights_file: Path | None) -> tuple[WeightReader, dict[str, Any]]:
    """Open the weights in a directory, or in the GGUF file that it describes, and read their ``config.json``.

    Raises:
        SourceError: the configuration is missing or malformed.
        CheckpointError: the weights are missing or malformed, or stored in a way that cannot be read.
        SpecError: a GGUF file has tensors that its family does not.
    """
    config = read_config(model_dir / MODEL_CONFIG)
    if weights_file is not None:
        return open_gguf_weights(weights_file, config), config
    return open_weights(model_dir, config), config
