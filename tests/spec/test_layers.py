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
