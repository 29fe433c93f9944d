"""Which of the two computes a model: the native decoder, or Transformers' own modelling code."""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneserve.errors import SpecError, UnsupportedModelError
from tuneserve.spec._read import read_spec
from tuneserve.spec._spec import ModelSpec


@dataclass(frozen=True)
class Computation:
    """How the native engine computes a model.

    ``spec`` is what its decoder needs. Where that does not compute the model it is None, ``reason`` says why, and the
    model runs through Transformers.
    """

    spec: ModelSpec | None
    reason: str | None = None


def computation_of(config: Mapping[str, Any]) -> Computation:
    """Say how the model of a ``config.json`` is computed; only for one that :func:`read_spec` has not is Transformers
    imported.

    Raises:
        SpecError: the configuration is malformed, or neither of the two computes such a model.
    """
    try:
        return Computation(read_spec(config))
    except UnsupportedModelError as error:
        reason = str(error).partition(";")[0].rstrip(".")
    if problem := _transformers_problem(config):
        raise SpecError(f"{reason}, and {problem}; use another model or engine.")
    return Computation(None, reason)


def _transformers_problem(config: Mapping[str, Any]) -> str | None:
    """Say why Transformers has no decoder for a model, None where it has one."""
    # Beside what is installed, it would fetch kernels from the hub and run them.
    os.environ["USE_HUB_KERNELS"] = "NO"
    try:
        auto = importlib.import_module("transformers.models.auto.modeling_auto")
    except ImportError:
        return "Transformers, which might, is not installed"
    family = config.get("model_type")
    name = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family) if isinstance(family, str) else None
    if name is None:
        return "Transformers has no causal language model of that type either"
    if config.get("is_encoder_decoder") is True:
        return "an encoder with a decoder does not continue prompts"
    if name.endswith("ForConditionalGeneration"):
        return "Transformers has it only together with what sees or hears"
    return None
