"""Protects: a configuration means to the native engine what it means to Transformers, or is refused by name."""

from dataclasses import replace
from typing import Any

import pytest

from tuneserve.errors import SpecError
from tuneserve.spec import FAMILIES, read_spec, tensor_shapes

Config = dict[str, Any]
SIZES: Config = {
    "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 32, "vocab_size": 96,
}  # fmt: skip

TYPED = ("smollm3", "ministral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma4_text", "gpt_oss")
# The families for which Transformers takes null in a field.
NULLS = {
    "num_key_value_heads": ("llama", "smollm3", "qwen2", "qwen3", "phi3", "granite"),
    "sliding_window": ("smollm3", "mistral", "ministral", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe"),
    "attn_logit_softcapping": ("gemma2", "gemma3_text"),
    "final_logit_softcapping": ("gemma2", "gemma3_text"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_mean_what_transformers_fills_in(family: str) -> None:
    assert read_spec({**SIZES, "model_type": family}) == read_spec(_filled_in(family, SIZES))


@pytest.mark.parametrize(("field", "families"), NULLS.items())
def test_null_means_what_transformers_makes_of_it(field: str, families: tuple[str, ...]) -> None:
    given = {**SIZES, field: None}
    for family in families:
        assert read_spec({**given, "model_type": family}) == read_spec(_filled_in(family, given))


def _filled_in(family: str, given: Config) -> Config:
    from transformers import AutoConfig

    full: Config = AutoConfig.for_model(family, **given).to_dict()
    return full


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "96"}, "vocab_size"),
        ({"num_hidden_layers": 2**20}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"head_dim": 21}, "elements of each head rotated"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"hidden_act": "relu", "hidden_activation": "relu"}, "relu"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"quantization_config": {}}, "quantised"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused_by_name(family: str, change: Config, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_spec({**SIZES, "model_type": family, **change})


@pytest.mark.parametrize("family", TYPED)
@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["full_attention"] * 7, "a list of 8 strings"),
        (["full_attention", 3] * 4, "a list of 8 strings"),
        (["linear_attention"] * 8, "linear_attention"),
    ],
    ids=["too few", "not a name", "unknown"],
)
def test_layer_types_are_read_or_refused(family: str, types: list[Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_spec({**SIZES, "model_type": family, "layer_types": types})


@pytest.mark.parametrize("family", ["mistral", "ministral3", "phi3", "mixtral", "qwen3_moe"])
def test_layer_types_of_a_family_without_them_are_refused(family: str) -> None:
    with pytest.raises(SpecError, match=f"layer_types, which {family} does not have"):
        read_spec({**SIZES, "model_type": family, "layer_types": ["full_attention"] * 8})


WRAPPED = {
    "gemma3": "gemma3_text", "mistral3": "ministral3", "gemma4": "gemma4_text",
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
}  # fmt: skip


@pytest.mark.parametrize(("wrapper", "family"), WRAPPED.items())
def test_the_text_part_of_a_wrapper_is_read(wrapper: str, family: str) -> None:
    text = {**SIZES, "model_type": family}
    spec = read_spec({"model_type": wrapper, "text_config": text, "tie_word_embeddings": False})
    assert spec == replace(read_spec({**text, "tie_word_embeddings": False}), wrapped=True)
    with pytest.raises(SpecError, match="text_config"):
        read_spec({"model_type": wrapper})
    with pytest.raises(SpecError, match="wrapper"):
        read_spec({"model_type": wrapper, "text_config": {**text, "model_type": "wrapper"}})


def test_what_is_published_of_gemma_3_4b_is_read() -> None:
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    spec = read_spec({"model_type": "gemma3", "text_config": text})
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.vocab_size, spec.tied) == (8, 4, 256, 262208, True)


def test_another_family_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="mamba2"):
        read_spec({**SIZES, "model_type": "mamba2"})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_of_one_layer_are_named_once(family: str) -> None:
    shapes = tensor_shapes(read_spec({**SIZES, "model_type": family}))
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    assert layers == set("01234567")
    assert all(size > 0 for shape in shapes.values() for size in shape)
