"""Transformers models without weights: the model's own class on the meta device, its computed buffers real."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tuneserve.errors import InputError, SourceError
from tuneserve.spec import check_buildable

_QUANTISED = ("quantization_config", "compression_config")


def empty_model(config: Mapping[str, Any], name: str) -> Any:
    """Return the causal language model that ``config`` (a ``config.json``) describes, in float32 without weights.

    Parameters and saved buffers are on the meta device. What a checkpoint does not hold, like rotary frequencies, is
    computed on the CPU, by Transformers' own initialisation.

    Raises:
        SourceError: Transformers has no such model of its own; code that comes with a model never runs.
        SpecError: there are more layers or experts than any model has.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            parsed = model_config(config, name)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    parsed, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
                )
            _compute_buffers(model)
    except InputError:
        raise
    # Of a configuration that makes no sense, each class of the library complains in its own way.
    except Exception as error:
        raise unloadable(name, error) from error
    return model.eval()


def model_config(config: Mapping[str, Any], name: str) -> Any:
    """Return Transformers' object for a ``config.json``, without what says how its weights are stored.

    Raises:
        SourceError: Transformers does not know the model's type, or cannot use what it says.
        SpecError: there are more layers or experts than any model has.
    """
    from transformers import AutoConfig

    check_buildable(config)
    plain = {key: value for key, value in config.items() if key not in _QUANTISED}
    model_type = plain.pop("model_type", None)
    try:
        if not isinstance(model_type, str):
            raise ValueError("its config.json names no model_type")
        return AutoConfig.for_model(model_type, **plain)
    except Exception as error:
        raise unloadable(name, error) from error


def unloadable(name: str, error: Exception) -> SourceError:
    """Return the error for a model that Transformers or PEFT cannot run, with their reason."""
    reason = str(error).strip().partition("\n")[0][:300].rstrip(".") or type(error).__name__
    return SourceError(
        f"{name} cannot be checked because Transformers does not load it ({reason}); "
        "repair it, or skip the check with --no-verify."
    )


def _compute_buffers(model: Any) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = False
        for name, buffer in module._buffers.items():
            if buffer is not None and name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    model.initialize_weights()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and advice out of our own output."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes")]
    levels, bars = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
