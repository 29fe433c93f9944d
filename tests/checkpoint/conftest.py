"""Checkpoints written by hand, as a stranger might."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def write_weights(tmp_path: Path) -> Callable[[Tensors], Path]:
    """Write ``model.safetensors`` into a directory and return that."""

    def write(tensors: Tensors) -> Path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
        return tmp_path

    return write
