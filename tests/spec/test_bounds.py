"""Protects: no library is asked to build a model that would take hours and all of the memory."""

from typing import Any

import pytest

from tuneserve.errors import SpecError
from tuneserve.spec import check_buildable


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 4097},
        {"n_layer": 10**30},
        {"decoder_layers": 1e300},
        {"text_config": {"num_hidden_layers": 2**31}},
        {"vision_config": {"depth": 10**6}},
        {"num_hidden_layers": 64, "num_local_experts": 2048},
        {"num_hidden_layers": 2, "n_routed_experts": 2**20},
    ],
    ids=str,
)
def test_more_than_any_model_has_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="more than any model"):
        check_buildable(config)


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 126, "vocab_size": 262_144, "max_position_embeddings": 10_485_760},
        {"num_hidden_layers": 61, "n_routed_experts": 384, "num_experts_per_tok": 8},
        {"n_layer": "many", "layer_norm_eps": 1e-5, "block_size": 8192, "layers": float("nan")},
        {},
    ],
    ids=str,
)
def test_whatever_else_is_said_is_left_to_the_library(config: dict[str, Any]) -> None:
    check_buildable(config)
