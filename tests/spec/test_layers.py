"""Protects: which layers have windows, positions and experts, in the configurations that are published."""

from typing import Any

import pytest

from tuneserve.errors import SpecError
from tuneserve.spec import LinearScaling, ModelSpec, read_spec


def read(family: str, layers: int = 8, **fields: Any) -> ModelSpec:
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 32, "vocab_size": 96}
    return read_spec({**sizes, "num_hidden_layers": layers, "model_type": family, **fields})


def windows(spec: ModelSpec) -> list[int | None]:
    return [layer.window for layer in spec.per_layer]


def test_every_fourth_layer_of_smollm3_knows_no_positions() -> None:
    assert [layer.rope is None for layer in read("smollm3").per_layer] == [False, False, False, True] * 2


def test_mistral_has_its_window_everywhere_or_nowhere() -> None:
    assert windows(read("mistral", sliding_window=4096)) == [4096] * 8
    assert windows(read("mistral", sliding_window=None)) == [None] * 8


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert windows(read("mistral", sliding_window=4096, max_position_embeddings=4096)) == [None] * 8


def test_qwen_has_a_window_only_where_it_is_switched_on() -> None:
    fields = {"sliding_window": 64, "max_window_layers": 6}
    assert windows(read("qwen2", **fields)) == [None] * 8
    assert windows(read("qwen2", **fields, use_sliding_window=True)) == [None] * 6 + [64] * 2
    everywhere = {**fields, "max_window_layers": 0}
    assert windows(read("qwen3", **everywhere, use_sliding_window=True)) == [64] * 8


def test_gemma_alternates() -> None:
    assert windows(read("gemma2", 4)) == [4096, None, 4096, None]
    types = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert windows(read("gemma2", 4, layer_types=types)) == [None, 4096, None, None]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            }
        },
    ],
    ids=["as published", "Transformers 5"],
)
def test_gemma3_has_positions_of_its_own_near_and_far(rope: dict[str, Any]) -> None:
    spec = read("gemma3_text", 7, sliding_window=512, **rope)
    assert windows(spec) == [512] * 5 + [None, 512]
    ropes = [layer.rope for layer in spec.per_layer]
    assert all(each and each.theta == 2e4 and each.scaling is None for each in ropes[:5])
    assert ropes[5] and ropes[5].theta == 5e5 and ropes[5].scaling == LinearScaling(factor=8.0)
    # A window that the context never reaches leaves the layer its own positions.
    short = read("gemma3_text", 7, sliding_window=512, max_position_embeddings=512, **rope)
    assert windows(short) == [None] * 7 and [layer.rope for layer in short.per_layer] == ropes


def test_gemma_that_looks_both_ways_is_refused() -> None:
    with pytest.raises(SpecError, match="use_bidirectional_attention"):
        read("gemma3_text", use_bidirectional_attention=True)


def test_experts_are_where_the_configuration_has_them() -> None:
    sparse = read("qwen3_moe", mlp_only_layers=[1, 3], num_experts=16)
    assert [layer.experts is not None for layer in sparse.per_layer] == [True, False, True, False, *[True] * 4]
    stepped = read("qwen3_moe", decoder_sparse_step=4, num_experts=16)
    assert [index for index, layer in enumerate(stepped.per_layer) if layer.experts] == [3, 7]


@pytest.mark.parametrize(
    "fields", [{"num_local_experts": 2, "num_experts_per_tok": 3}, {"num_local_experts": 1 << 20}], ids=str
)
def test_experts_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="experts in each"):
        read("mixtral", **fields)


def test_every_fourth_layer_of_qwen3_5_attends_and_the_others_carry_a_state() -> None:
    spec = read("qwen3_5_text", head_dim=16)
    assert [layer.delta_net is None for layer in spec.per_layer] == [False, False, False, True] * 2
    assert spec.has_state and [spec.cache_sizes(index) for index in (0, 3)] == [None, (4, 16)]
    assert [layer.rope and layer.rope.dim for layer in spec.per_layer[2:4]] == [None, 4]
    kinds = ["full_attention", "linear_attention"]
    assert [layer.delta_net is None for layer in read("qwen3_5_text", 2, layer_types=kinds).per_layer] == [True, False]


def test_gemma4_shares_the_keys_of_the_last_layer_of_its_kind() -> None:
    spec = read("gemma4_text", 12, num_kv_shared_layers=4, use_double_wide_mlp=True, head_dim=16, global_head_dim=32)
    assert [layer.keys_from for layer in spec.per_layer] == [None] * 8 + [7, 7, 7, 5]
    assert [layer.intermediate_size for layer in spec.per_layer] == [None] * 8 + [192] * 4
    assert [spec.cache_sizes(index) for index in (0, 5, 8)] == [(4, 16), (4, 32), None]
    assert windows(spec) == [512, 512, 512, 512, 512, None] * 2


def test_gemma4_has_fewer_keys_in_full_layers_only_where_they_are_values_too() -> None:
    own = {"num_global_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32}
    assert [read("gemma4_text", 6, **own).attention_sizes(index) for index in (0, 5)] == [(4, 16), (4, 32)]
    equal = read("gemma4_text", 6, **own, attention_k_eq_v=True)
    assert [equal.attention_sizes(index) for index in (0, 5)] == [(4, 16), (2, 32)]
    assert [layer.keys_are_values for layer in equal.per_layer] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate"),
        ("qwen3_5_text", {"linear_num_value_heads": 24}, "24 linear value heads over 16"),
        ("qwen3_5_text", {"layer_types": ["sliding_attention"] * 8}, "sliding_attention"),
        ("gemma4_text", {"enable_moe_block": True}, "enable_moe_block"),
        ("gemma4_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ("gemma4_text", {"vocab_size_per_layer_input": 95}, "vocab_size_per_layer_input"),
        ("gemma4_text", {"num_kv_shared_layers": 8}, "num_kv_shared_layers"),
        ("gemma4_text", {"num_kv_shared_layers": 6}, "layer 5 .* no layer before it"),
        ("gemma4_text", {"per_layer_config": {"8": {}}}, "layer '8'"),
        ("gemma4_text", {"per_layer_config": {"1": {"hidden_size": 4}}}, "layer '1'"),
        ("gemma4_text", {"per_layer_config": {"1": {"num_key_value_heads": 5}}}, "5 key-value heads"),
        ("gemma4_text", {"per_layer_config": {"5": {"head_dim": 2}}, "num_kv_shared_layers": 1}, "layer 7"),
    ],
    ids=str,
)
def test_what_these_families_could_ask_for_and_the_decoder_does_not_have_is_refused(
    family: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        read(family, **fields)
