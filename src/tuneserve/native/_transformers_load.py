"""A Transformers model filled from our own stream of weights. Transformers is imported only where one is needed."""

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from tuneserve.checkpoint import WeightReader
from tuneserve.errors import CheckpointError, SpecError
from tuneserve.model import misfit
from tuneserve.spec import check_buildable

# What the library's own code raises over a configuration or weights that it cannot use.
FAILURES = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, ArithmeticError,
    AssertionError, StrictDataclassError,
)  # fmt: skip
# They say how weights were stored, or name code that came with the model.
_NOT_PASSED = ("quantization_config", "compression_config", "auto_map", "model_type", "dtype", "torch_dtype")


def load_transformers_model(
    reader: WeightReader, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> Any:
    """Return Transformers' own causal language model for a ``config.json``, with the weights of ``reader``.

    Code that comes with a model never runs. The weights are in memory once, but for those that the library fuses.

    Raises:
        SpecError: Transformers has no such model, or cannot build it.
        CheckpointError: the weights are not all there, or others than the model's.
    """
    with _quiet():
        model_class, parsed = _model_class(config)
        weights = {name: reader.read(name) for name in reader.tensors}
        try:
            model, report = model_class.from_pretrained(
                None, config=parsed, state_dict=weights, dtype=dtype, output_loading_info=True, use_safetensors=True
            )
        except FAILURES as error:
            raise CheckpointError(
                f"Transformers cannot load the weights in {reader.files[0].parent} ({reason_of(error)}); "
                "download or save the model again."
            ) from error
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [f"{name} is not part of such a model" for name in sorted(report["unexpected_keys"])]
    if problems:
        raise misfit(reader, problems)
    return model.eval().requires_grad_(False).to(device)


def reason_of(error: Exception) -> str:
    """Return what a library says on one line, cut when long."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _model_class(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the class and its configuration; of a multimodal model, the text part's where it can stand alone."""
    transformers = importlib.import_module("transformers")
    check_buildable(config)
    try:
        plain = {key: _with_floats(value) for key, value in config.items() if key not in _NOT_PASSED}
        parsed = transformers.CONFIG_MAPPING[str(config.get("model_type"))].from_dict(plain)
        model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(parsed)]
        if model_class.config_class is parsed.sub_configs.get("text_config"):
            parsed = parsed.get_text_config()
    except FAILURES as error:
        raise SpecError(
            f"Transformers cannot use this config.json ({reason_of(error)}); download or save the model again."
        ) from error
    if getattr(parsed, "is_encoder_decoder", False):
        raise SpecError("the model is an encoder with a decoder, which does not continue prompts; use another model.")
    return model_class, parsed


def _with_floats(value: Any) -> Any:
    """Put infinities back, which JSON lacks and the library writes as objects."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_floats(item) for key, item in value.items()}
    return [_with_floats(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and advice out of our own output."""
    control = importlib.import_module("transformers.utils.logging")
    logger = logging.getLogger("transformers")
    level, bars = logger.level, control.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    control.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            control.enable_progress_bar()
