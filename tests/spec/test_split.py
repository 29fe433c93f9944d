"""Protects: what devices cannot divide is named, and what they can is divided without anything lost."""

import itertools
from dataclasses import replace

import pytest

from tuneserve.spec import (
    ExpertsSpec,
    LayerSpec,
    ModelSpec,
    Share,
    kv_heads_of,
    read_spec,
    reasons_against_split,
    split_spec,
)


@pytest.fixture
def spec() -> ModelSpec:
    return read_spec(
        {
            "model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 12, "num_key_value_heads": 3, "head_dim": 4, "vocab_size": 100,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        }
    )  # fmt: skip


@pytest.mark.parametrize("size", [3, 6, 12])
def test_every_query_head_stands_with_its_key_head(size: int, spec: ModelSpec) -> None:
    own, group = split_spec(spec, size), spec.heads // spec.kv_heads
    for share in (Share(rank, size) for rank in range(size)):
        heads, kv_heads = share.of(spec.heads), kv_heads_of(spec, share)
        assert len(kv_heads) == own.kv_heads and len(heads) == own.heads
        for place, head in enumerate(heads):
            assert kv_heads[place * own.kv_heads // own.heads] == head // group
    parts = [Share(rank, size).of(spec.intermediate_size) for rank in range(size)]
    assert list(itertools.chain(*parts)) == list(range(spec.intermediate_size))


def test_all_that_is_in_the_way_is_named(spec: ModelSpec) -> None:
    assert reasons_against_split(spec, 3) == []
    experts = ExpertsSpec(count=2, per_token=1, intermediate_size=7, normalised=True)
    mixed = replace(spec, per_layer=(spec.layer(0), replace(spec.layer(1), experts=experts)))
    assert reasons_against_split(mixed, 5) == [
        "5 devices do not divide its 12 attention heads",
        "5 devices neither divide its 3 key heads nor are a multiple of them",
        "5 devices do not divide its feed-forward size 96",
        "5 devices do not divide its expert size 7",
    ]
    assert reasons_against_split(spec, 2) == ["2 devices neither divide its 3 key heads nor are a multiple of them"]


def test_what_is_not_known_counts_against_it(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneserve.spec import _split

    monkeypatch.setattr(_split, "_MODEL_FIELDS", _split._MODEL_FIELDS - {"softcap"})
    monkeypatch.setattr(_split, "_LAYER_FIELDS", _split._LAYER_FIELDS - {"window"})
    assert reasons_against_split(spec, 3) == []
    window = LayerSpec(rope=spec.layer(0).rope, window=8)
    strange = replace(spec, softcap=3.0, per_layer=(window, spec.layer(1)))
    assert reasons_against_split(strange, 3) == ["it has window", "it has softcap"]
