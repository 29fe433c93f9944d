"""Reads checkpoints that bitsandbytes quantised: NF4, FP4 (scales quantised again or not) and int8.

Format: ``QuantState.as_dict`` and ``Linear8bitLt._save_to_state_dict`` of bitsandbytes 0.50.
"""

from collections.abc import Mapping
from typing import Any

from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint.quantised._bnb4bit import FourBitWeight
from tuneserve.checkpoint.quantised._bnb4bit_state import QUANT_STATE, read_state
from tuneserve.checkpoint.quantised._bnb8bit import EightBitWeight
from tuneserve.checkpoint.quantised._dequantising import (
    DequantisingReader,
    StoredWeight,
    config_dtype,
    dequantising_reader,
    malformed,
)
from tuneserve.errors import CheckpointError

_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
# Transformers turns these families' Conv1D, whose weights are [in, out], into linear layers before it quantises them.
_CONV1D = ("gpt2", "openai-gpt")


def open_bitsandbytes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> DequantisingReader:
    """Open a checkpoint that holds weights of bitsandbytes.

    Four-bit weights have the dtype they had before they were quantised, int8 weights that of ``config``.

    Raises:
        CheckpointError: a part is missing, left over, or disagrees with the others.
    """
    transposed = config.get("model_type") in _CONV1D
    weights: list[StoredWeight] = []
    for name in checkpoint.tensors:
        if QUANT_STATE in name:
            weight, _, quant_type = name.partition(QUANT_STATE)
            state = read_state(checkpoint, name, quant_type)
            weights.append(FourBitWeight.of(checkpoint, weight, state, transposed))
        elif name.endswith(".SCB"):
            module = name.removesuffix(".SCB")
            weights.append(EightBitWeight.of(checkpoint, module, config_dtype(config), transposed))
    if not weights:
        raise CheckpointError(
            f"config.json says that the weights are quantised with bitsandbytes, but {checkpoint.files[0]} holds none "
            "that are; if they were saved in 16 bits, remove quantization_config from config.json."
        )
    reader = dequantising_reader(checkpoint, weights)
    for name, spec in reader.tensors.items():
        if name.endswith(_PARTS) or QUANT_STATE in name:
            raise malformed(name, "belongs to a weight that is not there")
        if name.endswith(".weight") and spec.dtype in ("I8", "U8"):
            raise malformed(name, "comes without its scales")
    return reader
