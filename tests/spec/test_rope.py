"""Protects: every way of stretching rotary positions is read as it is published, and refused where it is malformed."""

import math
from typing import Any

import pytest

from tuneserve.errors import SpecError
from tuneserve.spec import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelSpec,
    RopeScaling,
    YarnScaling,
    read_spec,
)

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 4096, "rope_theta": 500000.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}  # fmt: skip
PHI = {**LLAMA, "model_type": "phi3", "original_max_position_embeddings": 1024}
FACTORS = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2] * 8}


def scaling(config: dict[str, Any]) -> RopeScaling | None:
    spec: ModelSpec = read_spec(config)
    rope = spec.layer(1).rope
    assert rope is not None and rope.theta == 500000.0
    return rope.scaling


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_scalings_are_read_in_both_forms(field: str) -> None:
    def read(**own: Any) -> RopeScaling | None:
        return scaling({**LLAMA, field: own})

    assert read(type="linear", factor=2) == LinearScaling(factor=2.0)
    assert read(**LLAMA3) == Llama3Scaling(factor=8.0, low=1.0, high=4.0, original_length=1024)
    assert read(rope_type="default") is None
    yarn = read(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024)
    assert yarn == YarnScaling(
        factor=4.0, original_length=1024, beta_fast=32.0, beta_slow=1.0, truncate=True,
        attention_factor=1 + 0.1 * math.log(4),
    )  # fmt: skip


def test_dynamic_scaling_begins_where_no_context_goes() -> None:
    assert scaling({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}) is None


def test_a_context_beyond_the_original_takes_the_long_factors() -> None:
    attention = math.sqrt(1 + math.log(4) / math.log(1024))
    assert scaling({**PHI, "rope_scaling": FACTORS}) == LongRopeScaling(
        short=(1.0,) * 8,
        long=(2.0,) * 8,
        original_length=1024,
        attention_factor=attention,
    )
    assert read_spec({**PHI, "rope_scaling": FACTORS}).short_context_length == 1024
    assert read_spec(LLAMA).short_context_length == 4096


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor"),
        ({**LLAMA, "rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        ({**LLAMA, "rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_theta"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": float("inf")}}, "factor"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**PHI, "rope_scaling": {**FACTORS, "long_factor": [1.0] * 7}}, "long_factor"),
        ({**PHI, "rope_scaling": {**FACTORS, "long_factor": [float("nan")] * 8}}, "long_factor"),
        ({**PHI, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({**PHI, "partial_rotary_factor": 0.01}, "0 elements"),
    ],
    ids=str,
)
def test_malformed_scalings_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_spec(config)
