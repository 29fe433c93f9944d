"""Carry out a plan: one tensor in memory at a time, in file order, hashing what is read and what is written."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tuneserve.artifacts._plan import ExportPlan
from tuneserve.checkpoint import SafetensorsWriter, TensorSpec, write_json

_INDEX_FILE = "model.safetensors.index.json"


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
        written[name] = _write_shard(plan, directory / name, tensors, advance)
        read[name] = sha256(plan.source.model_dir / name)
    if len(plan.shards) > 1:
        weight_map = {tensor.name: name for name, tensors in plan.shards.items() for tensor in tensors}
        write_json(directory / _INDEX_FILE, {"metadata": {"total_size": plan.weight_bytes}, "weight_map": weight_map})
    write_json(directory / "config.json", plan.config)
    for path in plan.copies:
        shutil.copyfile(path, directory / path.name)
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name not in written and not path.name.startswith("."):
            written[path.name] = sha256(path)
    return read, written


def _write_shard(plan: ExportPlan, path: Path, tensors: tuple[TensorSpec, ...], advance: Callable[[int], None]) -> str:
    with SafetensorsWriter(path, tensors) as writer:
        for tensor in tensors:
            writer.write(tensor.name, _bytes(plan.model.read(tensor.name)))
            advance(tensor.nbytes)
    return writer.sha256


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
