"""Protects: several adapters become one model as PEFT's add_weighted_adapter defines it."""

from typing import Any

import pytest
import torch

from tuneserve.adapters import Combination
from tuneserve.errors import AdapterError

Lab = Any


def lora(**fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **fields})


@pytest.mark.parametrize("kind", ["cat", "linear", "svd"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -1.7)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_two_adapters(lab: Lab, family: str, kind: Any, weights: tuple[float, ...]) -> None:
    base = lab.base(family)
    targets = (["q_proj", "down_proj"], ["q_proj", "embed_tokens"])
    if family == "gpt2":
        targets = (["c_attn", "mlp.c_proj"], ["c_attn", "wte"])
    first = lab.adapter(base, lora(target_modules=targets[0]))
    second = lab.adapter(base, lora(target_modules=targets[1], lora_alpha=3))
    merged = lab.merge(base, first, second, weights=weights, dtype="float32", combination=Combination(kind))
    reference = lab.unmerged(base, first, second)
    reference.add_weighted_adapter(["a0", "a1"], list(weights), "both", combination_type=kind)
    reference.set_adapter("both")
    lab.compare(merged, reference)


def test_svd_of_a_chosen_rank(lab: Lab) -> None:
    base = lab.base("llama")
    first, second = lab.adapter(base, lora()), lab.adapter(base, lora(r=2, target_modules=["q_proj"]))
    merged = lab.merge(base, first, second, dtype="float32", combination=Combination("svd", rank=2))
    reference = lab.unmerged(base, first, second)
    reference.add_weighted_adapter(["a0", "a1"], [1.0, 1.0], "both", combination_type="svd", svd_rank=2)
    reference.set_adapter("both")
    lab.compare(merged, reference)


def test_cat_is_both_adapters_at_once_whatever_their_ranks_and_scalings(lab: Lab) -> None:
    base = lab.base("llama")
    first, second = lab.adapter(base, lora(use_rslora=True)), lab.adapter(base, lora(r=2, lora_alpha=9))
    reference = lab.unmerged(base, first, second)
    reference.base_model.set_adapter(["a0", "a1"])
    lab.compare(lab.merge(base, first, second, dtype="float32"), reference)


def test_one_adapter_with_a_weight(lab: Lab) -> None:
    base = lab.base("llama")
    adapter = lab.adapter(base, lora())
    reference = lab.unmerged(base, adapter)
    reference.add_weighted_adapter(["a0"], [0.5], "halved", combination_type="linear")
    reference.set_adapter("halved")
    lab.compare(lab.merge(base, adapter, weights=(0.5,), dtype="float32"), reference)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "trained in full"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
        ({"init_lora_weights": "olora"}, "olora"),
    ],
    ids=str,
)
def test_what_has_no_definite_combination_is_refused(lab: Lab, fields: dict[str, Any], named: str) -> None:
    base = lab.base("llama")
    plain, other = lab.adapter(base, lora()), lab.adapter(base, lora(**fields))
    with pytest.raises(AdapterError, match=named):
        lab.merge(base, plain, other)
    with pytest.raises(AdapterError, match=named):
        lab.merge(base, other, weights=(0.5,))


def test_linear_needs_one_rank(lab: Lab) -> None:
    base = lab.base("llama")
    adapters = lab.adapter(base, lora()), lab.adapter(base, lora(r=2))
    with pytest.raises(AdapterError, match=r"\[4, 2\]; choose cat or svd"):
        lab.merge(base, *adapters, combination=Combination("linear"))
    assert torch.is_tensor(lab.merge(base, *adapters).read("model.layers.0.self_attn.q_proj.weight"))
