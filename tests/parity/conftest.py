"""Tiny models of many families and adapters of many kinds, made and saved by Transformers and PEFT themselves."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {"head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
_DELTA_NET = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": _HEADS,
    "gemma2": {**_HEADS, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {**_HEADS, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_HEADS, **_EXPERTS},
    "gpt_oss": {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "qwen3_5_text": {**_DELTA_NET, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {**_DELTA_NET, **_EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
    "gemma4_text": {
        **_HEADS,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": 16,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
    },
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 3.0},
}


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random model of a family, in float32 unless another dtype is given."""

    def make(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        directory = tmp_path_factory.mktemp(family)
        config = AutoConfig.for_model(family.partition("-")[0], **{**_SMALL, **FAMILIES[family], **changes})
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.to(dtype).save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random adapter for a model, with PEFT's LoraConfig or another's fields."""

    def make(base: Path, kind: str = "LoraConfig", **fields: Any) -> Path:
        import peft
        from transformers import AutoModelForCausalLM

        directory = tmp_path_factory.mktemp("adapter")
        config = getattr(peft, kind)(task_type="CAUSAL_LM", **fields)
        torch.manual_seed(4)
        with warnings.catch_warnings(action="ignore"):
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            tuned = peft.get_peft_model(model, config)
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            tuned.peft_config["default"].base_model_name_or_path = str(base)
            tuned.save_pretrained(directory)
        return directory

    return make
