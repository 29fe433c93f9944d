"""What a LoRA configuration may ask for that cannot be merged, with the remedy."""

from collections.abc import Mapping
from typing import Any

# Settings for training only, or that describe the file; whatever their value, the trained delta is the same.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "unsloth_fixed", "velora_config",
})  # fmt: skip
_UNDERSTOOD = frozenset({
    "alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save", "peft_type", "r",
    "rank_pattern", "target_modules", "target_parameters", "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip
_REFUSED = {
    "alora_invocation_tokens": "activated LoRA, which only works unmerged; serve it with PEFT or vLLM",
    "arrow_config": "Arrow, which picks adapters per token; export each adapter by itself",
    "kasa_config": "KaSA, which cuts the base down; merge it with PEFT and export the result",
    "layer_replication": "replicated layers, which make another model of the base; merge it with PEFT",
    "megatron_config": "Megatron's parallel layers; save the adapter from a model that Transformers loads",
    "monteclora_config": "MonteCLoRA, which samples its weights; merge it with PEFT and export the result",
    "use_bdlora": "block-diagonal LoRA; merge it with PEFT and export the result",
    "use_qalora": "QALoRA, which pools the inputs of a quantised layer; merge it with PEFT",
}
# Initialisations after which the frozen base is still the one that was downloaded.
_PLAIN = (True, False, "gaussian", "eva", "orthogonal", "mica", None)
# Initialisations whose residual base follows from the base alone.
RESIDUAL = ("pissa", "olora")
_CONVERT = "save it with path_initial_model_for_weight_conversion, which turns it into plain LoRA"


def refusals(config: Mapping[str, Any]) -> list[str]:
    """Return every reason why ``config`` cannot be merged, each with its remedy."""
    reasons = []
    for key, value in config.items():
        if key in _WITHOUT_EFFECT or key in _UNDERSTOOD or value in (None, False, [], {}, ""):
            continue
        reasons.append(f"{key[:100]} ({_REFUSED.get(key, 'not known; merge it with PEFT and export the result')})")
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        reasons.append(f"bias={str(config['bias'])[:50]!r} (not known; choose none, all or lora_only)")
    init = config.get("init_lora_weights", True)
    if init not in _PLAIN and init not in RESIDUAL:
        reasons.append(f"init_lora_weights={str(init)[:50]!r} ({_initialisation(str(init))})")
    return reasons


def _initialisation(init: str) -> str:
    if init.startswith("pissa_niter_"):
        return f"which moves a random part of the base into the adapter; {_CONVERT}"
    if init in ("corda", "lora_ga"):
        return f"which moves a part of the base that depends on training data into the adapter; {_CONVERT}"
    if init == "loftq":
        return "which trains on a base that is quantised on the way; save that base, and the adapter without it"
    return f"not known; {_CONVERT}"
