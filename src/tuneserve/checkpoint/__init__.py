"""Weights as streams: read one tensor at a time from hostile files, write them so that nothing is ever half-written."""

from tuneserve.checkpoint._output import AtomicDirectory, write_json
from tuneserve.checkpoint._read import Checkpoint, open_checkpoint, open_safetensors
from tuneserve.checkpoint._safetensors import DTYPE_BITS, TensorHeader, read_headers
from tuneserve.checkpoint._write import SafetensorsWriter, TensorSpec

__all__ = [
    "DTYPE_BITS",
    "AtomicDirectory",
    "Checkpoint",
    "SafetensorsWriter",
    "TensorHeader",
    "TensorSpec",
    "open_checkpoint",
    "open_safetensors",
    "read_headers",
    "write_json",
]
