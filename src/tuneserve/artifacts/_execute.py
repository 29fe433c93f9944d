"""Carry out a plan: one tensor in memory at a time, in file order, hashing what is read and what is written."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tuneserve.artifacts._plan import ExportPlan, PlannedTensor
from tuneserve.checkpoint import SafetensorsWriter, write_json
from tuneserve.errors import CheckpointError

_INDEX_FILE = "model.safetensors.index.json"
_TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def execute(plan: ExportPlan, directory: Path, advance: Callable[[int], None]) -> tuple[dict[str, str], dict[str, str]]:
    """Write the planned files into ``directory``; ``advance`` is called with the bytes of each tensor written.

    Returns:
        The sha256 of every weight file read and of every file written, by name.

    Raises:
        AdapterError: a merged tensor is not finite.
        CheckpointError: a base file changed under the hands.
        OSError: ``directory`` cannot be written.
    """
    read: dict[str, str] = {}
    written: dict[str, str] = {}
    for name, tensors in plan.shards.items():
        read[name], written[name] = _write_shard(plan, directory / name, tensors, advance)
    if len(plan.shards) > 1:
        weight_map = {tensor.output.name: name for name, tensors in plan.shards.items() for tensor in tensors}
        write_json(directory / _INDEX_FILE, {"metadata": {"total_size": plan.weight_bytes}, "weight_map": weight_map})
    write_json(directory / "config.json", plan.config)
    for path in plan.copies:
        shutil.copyfile(path, directory / path.name)
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name not in written and not path.name.startswith("."):
            written[path.name] = sha256(path)
    return read, written


def _write_shard(
    plan: ExportPlan, path: Path, tensors: tuple[PlannedTensor, ...], advance: Callable[[int], None]
) -> tuple[str, str]:
    source = tensors[0].input.path
    digest = hashlib.sha256(_file_header(source, tensors[0].input.offset))
    with SafetensorsWriter(path, [tensor.output for tensor in tensors]) as writer:
        for planned in tensors:
            tensor = plan.checkpoint.read(planned.input.name)
            digest.update(_bytes(tensor))
            writer.write(planned.output.name, _bytes(_result(plan, planned, tensor)))
            advance(planned.output.nbytes)
    return digest.hexdigest(), writer.sha256


def _result(plan: ExportPlan, planned: PlannedTensor, tensor: torch.Tensor) -> torch.Tensor:
    if planned.output.dtype == planned.input.dtype and not planned.merged:
        return tensor
    dtype = _TORCH[planned.output.dtype]
    if planned.merged and plan.adapter is not None:
        return plan.adapter.merge(planned.input.name, tensor, dtype)
    return tensor.to(dtype)


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_header(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        header = file.read(length)
    if len(header) != length:
        raise CheckpointError(f"{path} was truncated while it was read; download or save it again.")
    return header


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
