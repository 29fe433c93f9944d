"""``adapter_config.json`` as PEFT writes it; whatever is not understood is refused by name.

Semantics follow PEFT (https://github.com/huggingface/peft, ``LoraConfig`` and ``LoraModel``).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneserve.adapters._match import layer_index, matches, pattern_value
from tuneserve.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
ALL_LINEAR = "all-linear"
_MAX_CONFIG_BYTES = 10_000_000
_MAX_RANK = 65_536

# Settings for training only, or that describe the file; whatever their value, the trained delta is the same.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "unsloth_fixed", "velora_config",
})  # fmt: skip
_UNDERSTOOD = frozenset({
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "use_rslora",
})  # fmt: skip
# Initialisations after which the frozen base is still the one that was downloaded.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", None)
_MEANING = {
    "use_dora": "DoRA",
    "lora_bias": "biases in the LoRA layers",
    "modules_to_save": "modules trained in full",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters (mixture-of-experts weights)",
    "alora_invocation_tokens": "activated LoRA, which must not be merged",
    "layer_replication": "replicated layers",
    "use_qalora": "QALoRA",
}


@dataclass(frozen=True)
class LoraConfig:
    """What determines the delta of a LoRA adapter."""

    r: int
    alpha: float
    use_rslora: bool
    target_modules: str | tuple[str, ...] | None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def rank(self, module: str) -> int:
        """Return the rank of the delta of ``module`` (a dotted path in the base)."""
        return pattern_value(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """Return the factor of B @ A for ``module``: alpha/r, or alpha/sqrt(r) for rsLoRA (arXiv:2312.03732)."""
        alpha, rank = pattern_value(self.alpha_pattern, module, self.alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def is_target(self, module: str) -> bool:
        """Return whether training put a delta on ``module``."""
        if self.exclude_modules and matches(self.exclude_modules, module):
            return False
        if self.target_modules is None:
            return False
        if self.target_modules == ALL_LINEAR:
            return layer_index(module, ()) is not None
        if not matches(self.target_modules, module):
            return False
        if self.layers_to_transform is None or isinstance(self.target_modules, str) or module in self.target_modules:
            return True
        return layer_index(module, self.layers_pattern) in self.layers_to_transform


def read_lora_config(directory: Path) -> LoraConfig:
    """Read the adapter configuration in ``directory``.

    Raises:
        AdapterError: it is missing, malformed, or sets anything that is not understood; every reason is named.
    """
    path = directory / CONFIG_FILE
    config = _read_object(path)
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is of PEFT type {config.get('peft_type')!r}; only LORA adapters can be merged yet.")
    if reasons := _refusals(config):
        raise AdapterError(f"{path} has {'; '.join(reasons)}; merge such an adapter with PEFT and use the result.")
    try:
        return _parse(config)
    except _MalformedError as error:
        raise AdapterError(f"{path} is malformed: {error}; save the adapter again.") from None


def _refusals(config: Mapping[str, Any]) -> list[str]:
    reasons = []
    for key, value in config.items():
        if key in _WITHOUT_EFFECT or key in _UNDERSTOOD or value in (None, False, [], {}, ""):
            continue
        meaning = f" ({_MEANING[key]})" if key in _MEANING else ""
        reasons.append(f"{key}{meaning}, which is not supported")
    if config.get("bias", "none") != "none":
        reasons.append(f"bias={config['bias']!r}, which is not supported")
    if config.get("fan_in_fan_out"):
        reasons.append("fan_in_fan_out, which is not supported")
    if (init := config.get("init_lora_weights", True)) not in _PLAIN_INITIALISATIONS:
        reasons.append(f"init_lora_weights={init!r}, which alters the base and is not supported")
    return reasons


class _MalformedError(Exception):
    pass


def _parse(config: Mapping[str, Any]) -> LoraConfig:
    rank_pattern = {key: _rank(value, key) for key, value in _mapping(config, "rank_pattern").items()}
    alpha_pattern = {key: _number(value, key) for key, value in _mapping(config, "alpha_pattern").items()}
    layers = config.get("layers_to_transform")
    if layers in (None, []):
        indices = None
    else:
        indices = tuple(layers) if isinstance(layers, list) else (layers,)
        if not all(type(index) is int for index in indices):
            raise _MalformedError("layers_to_transform is not a list of integers")
    return LoraConfig(
        r=_rank(config.get("r"), "r"),
        alpha=_number(config.get("lora_alpha"), "lora_alpha"),
        use_rslora=_flag(config, "use_rslora"),
        target_modules=_modules(config, "target_modules"),
        exclude_modules=_modules(config, "exclude_modules"),
        layers_to_transform=indices,
        layers_pattern=_strings(config.get("layers_pattern"), "layers_pattern"),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )


def _rank(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise _MalformedError(f"the rank {name}={str(value)[:50]} is not an integer from 1 to {_MAX_RANK}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise _MalformedError(f"{name}={str(value)[:50]} is not a number of a usable size")
    return float(value)


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise _MalformedError(f"{name} is neither true nor false")
    return value


def _mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise _MalformedError(f"{name} is not an object")
    return value


def _modules(config: Mapping[str, Any], name: str) -> str | tuple[str, ...] | None:
    value = config.get(name)
    if value is None or isinstance(value, str):
        return value or None
    return _strings(value, name)


def _strings(value: Any, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _MalformedError(f"{name} is not a list of strings")
    return tuple(value)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AdapterError(f"{path} is missing; point to the directory that training wrote.")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise AdapterError(
            f"{path} is over {_MAX_CONFIG_BYTES} bytes, which no adapter configuration is; save it again."
        )
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is not a JSON object; save the adapter again.")
    return config
