"""What several engines ask of a source before they start, from its configurations alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tuneserve.adapters import LoraAdapter, open_adapter
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.errors import AdapterError, InputError
from tuneserve.hardware import has_nvidia_gpu
from tuneserve.sources import ResolvedSource, read_config

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_dtype(options: ServeOptions) -> None:
    """Raise InputError unless the dtype is one."""
    if options.dtype not in _DTYPES:
        raise InputError(f"the dtype {options.dtype!r} is not known; choose {', '.join(_DTYPES)}.")


def refuse_own_arguments(options: ServeOptions, ours: Sequence[str]) -> None:
    """Raise InputError where an argument for the engine is one that tuneserve gives it itself."""
    for argument in options.arguments:
        name = argument.partition("=")[0]
        if name.replace("_", "-") in ours:
            raise InputError(
                f"--engine-arg {name} is set by tuneserve itself; leave it out, or use the "
                "option of 'tuneserve serve' for it."
            )


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def gpu_problems() -> list[str]:
    """Return why an engine for GPUs cannot run here."""
    return [] if has_nvidia_gpu() else ["it needs an NVIDIA GPU, and this machine has none"]


def quantisation(source: ResolvedSource) -> Mapping[str, Any] | None:
    """Return the ``quantization_config`` of a model, None where its weights are in 16 or 32 bits."""
    found = read_config(source.model_dir / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else None


def lora_problems(adapter: NamedAdapter, lacking: Mapping[str, str]) -> list[str]:
    """Return what an engine cannot serve of an adapter.

    ``lacking`` maps the fields of :class:`~tuneserve.adapters.LoraConfig` that it does not honour to what they are
    called.
    """
    try:
        opened = open_adapter(adapter.directory)
    except AdapterError as error:
        return [f"the adapter {adapter.name} cannot be read ({str(error).rstrip('.')})"]
    if not isinstance(opened, LoraAdapter):
        return [f"the adapter {adapter.name} is of PEFT type {opened.kind}, and it takes only LoRA"]
    config = opened.config
    wrong = [
        called for field, called in lacking.items() if getattr(config, field) not in (False, "none", "", None, (), {})
    ]
    return [f"it does not honour the {', '.join(wrong)} of the adapter {adapter.name}"] if wrong else []
