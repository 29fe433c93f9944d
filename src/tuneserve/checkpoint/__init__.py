"""Weights as streams: read one tensor at a time from hostile files, write them so that nothing is ever half-written."""

from tuneserve.checkpoint._codes import NF4, CodeReader, StoredCodes, checked, codes_of, storage_of
from tuneserve.checkpoint._digest import ALGORITHM, file_digest, new_digest
from tuneserve.checkpoint._gguf import GgufFile, GgufTensor, open_gguf
from tuneserve.checkpoint._gguf_blocks import read_rows
from tuneserve.checkpoint._gguf_codes import read_codes
from tuneserve.checkpoint._output import AtomicDirectory, check_absent, write_json
from tuneserve.checkpoint._pattern import compile_pattern
from tuneserve.checkpoint._placed import PlacedFile
from tuneserve.checkpoint._read import Checkpoint, open_checkpoint, open_safetensors, torch_dtype
from tuneserve.checkpoint._safetensors import read_headers
from tuneserve.checkpoint._tensor import DTYPE_BITS, RowReader, TensorHeader, TensorSpec, WeightReader
from tuneserve.checkpoint._write import SafetensorsWriter, safetensors_header

__all__ = [
    "ALGORITHM",
    "DTYPE_BITS",
    "NF4",
    "AtomicDirectory",
    "Checkpoint",
    "CodeKind",
    "CodeReader",
    "GgufFile",
    "GgufTensor",
    "PlacedFile",
    "RowReader",
    "SafetensorsWriter",
    "StoredCodes",
    "TensorHeader",
    "TensorSpec",
    "WeightReader",
    "check_absent",
    "checked",
    "codes_of",
    "compile_pattern",
    "file_digest",
    "new_digest",
    "open_checkpoint",
    "open_gguf",
    "open_safetensors",
    "read_codes",
    "read_headers",
    "read_rows",
    "safetensors_header",
    "storage_of",
    "torch_dtype",
    "write_json",
]
