"""What a LoRA adapter's ``adapter_config.json`` says; whatever is not understood is refused by name.

Semantics follow PEFT (https://github.com/huggingface/peft, ``LoraConfig`` and ``LoraModel``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneserve.adapters._fields import (
    CONFIG_FILE,
    MAX_KINDS,
    MalformedError,
    read_adapter_config,
    read_flag,
    read_indices,
    read_mapping,
    read_modules,
    read_number,
    read_rank,
    read_strings,
)
from tuneserve.adapters._refusals import RESIDUAL, refusals
from tuneserve.errors import AdapterError

LORA = "LORA"


@dataclass(frozen=True)
class LoraConfig:
    """What determines the change that a LoRA adapter makes.

    ``trained_tokens`` maps modules (None: the input embedding) to token ids. ``residual`` names the initialisation that
    has moved part of the base into the adapter, "pissa" (arXiv:2404.02948) or "olora" (arXiv:2406.01775); it is empty
    where the base was left alone.
    """

    r: int
    alpha: float
    use_rslora: bool
    target_modules: str | tuple[str, ...] | None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    fan_in_fan_out: bool = False
    modules_to_save: tuple[str, ...] = ()
    trained_tokens: Mapping[str | None, tuple[int, ...]] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    ensure_weight_tying: bool = False
    residual: str = ""


def read_lora_config(directory: Path) -> LoraConfig:
    """Read the adapter configuration in ``directory``.

    Raises:
        AdapterError: it is missing, malformed, or sets anything that is not understood; every reason is named.
    """
    return parse_lora_config(read_adapter_config(directory), directory / CONFIG_FILE)


def parse_lora_config(config: Mapping[str, Any], path: Path) -> LoraConfig:
    """Read the configuration ``config``, which was read from ``path``.

    Raises:
        AdapterError: as :func:`read_lora_config`.
    """
    if config.get("peft_type") != LORA:
        raise AdapterError(
            f"{path} is of PEFT type {str(config.get('peft_type'))[:50]!r}, not {LORA}; name an adapter of that type."
        )
    if reasons := refusals(config):
        raise AdapterError(f"{path} has what cannot be merged: {'; '.join(reasons[:8])}.")
    try:
        return _parse(config)
    except MalformedError as error:
        raise AdapterError(f"{path} is malformed: {error}; save the adapter again.") from None


def _parse(config: Mapping[str, Any]) -> LoraConfig:
    layers = config.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    init = config.get("init_lora_weights", True)
    return LoraConfig(
        r=read_rank(config.get("r"), "r"),
        alpha=read_number(config.get("lora_alpha"), "lora_alpha"),
        use_rslora=read_flag(config, "use_rslora"),
        target_modules=read_modules(config, "target_modules"),
        exclude_modules=read_modules(config, "exclude_modules"),
        layers_to_transform=read_indices(layers, "layers_to_transform") if layers else None,
        layers_pattern=read_strings(config.get("layers_pattern"), "layers_pattern", MAX_KINDS),
        rank_pattern={key: read_rank(value, key) for key, value in read_mapping(config, "rank_pattern").items()},
        alpha_pattern={key: read_number(value, key) for key, value in read_mapping(config, "alpha_pattern").items()},
        use_dora=read_flag(config, "use_dora"),
        lora_bias=read_flag(config, "lora_bias"),
        bias=config.get("bias") or "none",
        fan_in_fan_out=read_flag(config, "fan_in_fan_out"),
        modules_to_save=read_strings(config.get("modules_to_save"), "modules_to_save", MAX_KINDS),
        trained_tokens=_trained_tokens(config.get("trainable_token_indices")),
        target_parameters=read_strings(config.get("target_parameters"), "target_parameters", MAX_KINDS),
        ensure_weight_tying=read_flag(config, "ensure_weight_tying"),
        residual=init if init in RESIDUAL else "",
    )


def _trained_tokens(value: Any) -> dict[str | None, tuple[int, ...]]:
    name = "trainable_token_indices"
    if not value:
        return {}
    if isinstance(value, dict):
        if len(value) > MAX_KINDS:
            raise MalformedError(f"{name} has {len(value)} entries, over {MAX_KINDS}")
        return {module: read_indices(indices, name) for module, indices in value.items()}
    return {None: read_indices(value, name)}
