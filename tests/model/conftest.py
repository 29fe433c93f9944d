"""A tiny random checkpoint of each family, written by Transformers, and its logits there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .families import FAMILIES, SMALL


def write_family(directory: Path, name: str, **changes: Any) -> Path:
    """Write the model ``name`` of :data:`FAMILIES`, its norms and biases drawn at random too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, fields = FAMILIES[name]
    config = AutoConfig.for_model(family, **{**SMALL, **fields, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for scalar in [tensor for name, tensor in model.named_buffers() if name.endswith("layer_scalar")]:
            scalar.copy_(torch.rand(scalar.shape) + 0.5)
        for parameter in model.parameters():
            # Larger than what training begins with: differences must show in the logits.
            spread = 0.3 if parameter.dim() < 2 else 3.0 * parameter.shape[-1] ** -0.5 / 2
            parameter.copy_(torch.randn(parameter.shape) * spread + (parameter if parameter.dim() < 2 else 0))
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def make_family(tmp_path: Path) -> Callable[..., Path]:
    """Return :func:`write_family` into a new directory per name."""

    def make(name: str, **changes: Any) -> Path:
        return write_family(tmp_path / name.replace(" ", "-"), name, **changes)

    return make
