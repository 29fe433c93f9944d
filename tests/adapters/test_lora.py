"""Protects: every form of LoRA that PEFT writes is merged to the unmerged model, or refused by name."""

from typing import Any

import pytest

Lab = Any
LINEAR = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["k_proj", "o_proj", "gate_proj"],
    "gemma2": ["q_proj", "up_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def lora(**fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, **fields})


@pytest.mark.parametrize("family", LINEAR)
@pytest.mark.parametrize("use_dora", [False, True])
def test_linear_layers_of_every_layout(lab: Lab, family: str, use_dora: bool) -> None:
    base = lab.base(family)
    lab.check(base, lab.adapter(base, lora(target_modules=LINEAR[family], use_dora=use_dora)))


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*(q|down)_proj"},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, r"layers\.0\..*": 3, "q_proj": 5}},
        {"alpha_pattern": {"v_proj": 3, "layers.1.self_attn.v_proj": 9}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa", "use_dora": True},
        {"velora_config": {"num_groups": 4, "scale": 1.0, "init_type": "random"}},
        {"bias": "all"},
        {"lora_bias": True},
        {"lora_bias": True, "target_modules": ["gate_proj"]},
        {"modules_to_save": ["norm", "mlp"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_settings(lab: Lab, fields: dict[str, Any]) -> None:
    base = lab.base("llama")
    lab.check(base, lab.adapter(base, lora(**{"target_modules": ["q_proj", "v_proj"], **fields})))
