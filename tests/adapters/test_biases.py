"""Protects: the flags that give layers a bias are those of Transformers, family by family."""

from typing import Any

import pytest
import torch

from tuneserve.adapters import _biases
from tuneserve.errors import AdapterError

Lab = Any
FLAGS = [("attention_bias", family) for family in sorted(_biases._ATTENTION_BIAS)]
FLAGS += [("mlp_bias", family) for family in sorted(_biases._MLP_BIAS)]


def biases(family: str, **flags: bool) -> set[str]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family)
    text = config.get_text_config()
    text.num_hidden_layers = 1
    text.layer_types = ["full_attention"]
    for name, value in flags.items():
        setattr(text, name, value)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name for name, _ in model.named_parameters() if name.endswith("_proj.bias") and "vision" not in name}


@pytest.mark.parametrize(("flag", "family"), FLAGS)
def test_a_flag_gives_a_bias_to_its_modules_and_no_other(flag: str, family: str) -> None:
    group = _biases._ATTENTION if flag == "attention_bias" else _biases._MLP
    added = biases(family, **{flag: True}) - biases(family, **{flag: False})
    assert {name.partition("layers.0.")[2] for name in added} == {f"{module}.bias" for module in group}


def test_a_family_without_the_flag_is_refused(lab: Lab) -> None:
    from peft import LoraConfig

    base = lab.base("qwen2")
    adapter = lab.adapter(base, LoraConfig(r=4, target_modules=["o_proj", "q_proj"], lora_bias=True))
    with pytest.raises(AdapterError, match=r"o_proj gets a bias .lora_bias., and qwen2 models have none there"):
        lab.merge(base, adapter)


def test_biases_of_some_layers_are_zero_in_the_others(lab: Lab) -> None:
    from peft import LoraConfig

    base = lab.base("llama")
    config = LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1], lora_bias=True)
    merged = lab.check(base, lab.adapter(base, config))
    assert merged.config["attention_bias"] is True
    assert not merged.read("model.layers.0.self_attn.o_proj.bias").any()
    assert merged.read("model.layers.1.self_attn.q_proj.bias").any()
