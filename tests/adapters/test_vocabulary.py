"""Protects: embedding and head end up as PEFT's unmerged model uses them: tied, untied, retrained, resized."""

import json
from typing import Any

import pytest
import torch

from tuneserve.errors import AdapterError

Lab = Any
SETTINGS: list[dict[str, Any]] = [
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head"]},
    {"target_modules": ["lm_head", "embed_tokens"]},
    {"target_modules": ["embed_tokens"], "use_dora": True},
    {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}},
    {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 5]}},
    {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}},
    {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4]}},
    {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["lm_head"], "trainable_token_indices": {"embed_tokens": [7]}},
]


def lora(**fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, **fields})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("fields", SETTINGS, ids=str)
def test_changes_of_embedding_and_head(lab: Lab, fields: dict[str, Any], tied: bool) -> None:
    base = lab.base("llama", tie_word_embeddings=tied)
    lab.check(base, lab.adapter(base, lora(**fields)))


@pytest.mark.parametrize(
    ("fields", "stays"),
    [
        ({"target_modules": ["embed_tokens"]}, False),
        ({"target_modules": ["lm_head"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, True),
        ({"target_modules": ["q_proj"]}, True),
    ],
    ids=str,
)
def test_a_tie_is_kept_where_both_share_the_change(lab: Lab, fields: dict[str, Any], stays: bool) -> None:
    base = lab.base("llama", tie_word_embeddings=True)
    merged = lab.check(base, lab.adapter(base, lora(**fields)))
    assert ("lm_head.weight" not in merged.tensors) is stays
    assert merged.config["tie_word_embeddings"] is stays


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("fields", "save"),
    [
        ({"target_modules": ["q_proj"]}, {"save_embedding_layers": True}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, {}),
        ({"target_modules": ["embed_tokens", "lm_head"]}, {}),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [41, 44]}, {"save_embedding_layers": True}),
    ],
    ids=str,
)
def test_a_resized_vocabulary(lab: Lab, fields: dict[str, Any], save: dict[str, Any], tied: bool) -> None:
    base = lab.base("llama", tie_word_embeddings=tied)
    merged = lab.check(base, lab.adapter(base, lora(**fields), resize=45, **save), resize=45)
    assert merged.config["vocab_size"] == 45
    assert merged.tensors["model.embed_tokens.weight"].shape == (45, 16)


def test_half_a_resized_vocabulary_is_refused(lab: Lab) -> None:
    base = lab.base("llama", tie_word_embeddings=False)
    adapter = lab.adapter(base, lora(target_modules=["embed_tokens"]), resize=45)
    with pytest.raises(AdapterError, match=r"embedding has 45 rows and the head 40.*save_embedding_layers"):
        lab.merge(base, adapter)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_other_families(lab: Lab, family: str, tied: bool) -> None:
    embedding = {"gpt2": "wte", "gpt_neox": "embed_in"}.get(family, "embed_tokens")
    base = lab.base(family, tie_word_embeddings=tied)
    merged = lab.check(base, lab.adapter(base, lora(target_modules=[embedding, "lm_head"])))
    assert merged.config["tie_word_embeddings"] is False


def test_a_family_that_ties_by_default_is_told_not_to(lab: Lab) -> None:
    base = lab.base("gemma2")
    path = base / "config.json"
    config = json.loads(path.read_text())
    config.pop("tie_word_embeddings", None)
    path.write_text(json.dumps(config))
    merged = lab.check(base, lab.adapter(base, lora(target_modules=["lm_head"])))
    assert merged.config["tie_word_embeddings"] is False


def test_on_a_16_bit_base_the_setting_alone_ties_nothing(lab: Lab) -> None:
    """PEFT trains the two deltas apart there, in spite of ensure_weight_tying."""
    base = lab.base("llama", torch.bfloat16, tie_word_embeddings=True)
    config = lora(target_modules=["embed_tokens"], ensure_weight_tying=True)
    adapter = lab.adapter(base, config, base_dtype=torch.bfloat16)
    merged = lab.merge(base, adapter, dtype="float32")
    lab.compare(merged, lab.unmerged(base, adapter, dtype=torch.bfloat16))
    assert "lm_head.weight" in merged.tensors
