"""The one door from a source to its base's weights."""

from typing import Any

from tuneserve.checkpoint import WeightReader
from tuneserve.checkpoint.quantised import open_weights
from tuneserve.sources._gguf import open_gguf_weights
from tuneserve.sources._resolve import MODEL_CONFIG, ResolvedSource, read_config


def open_model(source: ResolvedSource) -> tuple[WeightReader, dict[str, Any]]:
    """Open the weights of a source (of an adapter: its base), and read their ``config.json``.

    Raises:
        SourceError: the configuration is missing or malformed.
        CheckpointError: the weights are missing or malformed, or stored in a way that cannot be read.
        SpecError: a GGUF file has tensors that its family does not.
    """
    config = read_config(source.model_dir / MODEL_CONFIG)
    if source.weights_file is not None:
        return open_gguf_weights(source.weights_file, config), config
    return open_weights(source.model_dir, config), config
