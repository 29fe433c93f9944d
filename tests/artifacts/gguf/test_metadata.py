"""Protects: whatever a configuration holds, it is read or refused, in one sentence."""

from typing import Any

import pytest

from tuneserve.artifacts.gguf._header import lay_out
from tuneserve.artifacts.gguf._metadata import read_model
from tuneserve.errors import SpecError
from tuneserve.spec import GGUF_ARCHITECTURES

LONGROPE = {"rope_type": "longrope", "long_factor": [1] * 48, "short_factor": [1.0] * 48}
JUNK: list[Any] = [
    *(None, 0, -1, 1, 3, 10**9, 2**70, 1.5, float("nan"), float("inf"), 1e-300),
    *("x", "", [], [1], [[]], {}, {"a": 1}, True),
    {"rope_type": "yarn", "factor": 1e30},
    {"rope_type": "yarn", "factor": 2, "mscale": 3, "mscale_all_dim": 1e-30},
    {"rope_type": "llama3", "factor": 1, "low_freq_factor": 1e-300, "high_freq_factor": 1e30,
     "original_max_position_embeddings": 3},
    {"full_attention": 3},
    {"full_attention": {"rope_type": []}, "sliding_attention": {}},
    {**LONGROPE, "original_max_position_embeddings": 1},
    {**LONGROPE, "original_max_position_embeddings": 64, "short_factor": [float("nan")] * 48},
]  # fmt: skip


@pytest.mark.parametrize("family", GGUF_ARCHITECTURES)
def test_no_value_of_any_field_fails_otherwise_than_by_name(family: str) -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[family]().to_dict() | ({"norm_topk_prob": True} if family == "qwen3_moe" else {})
    assert read_model(config).family == family
    for field in [*config, "rope_scaling", "text_config", "rope_local_base_freq", "no_rope_layers"]:
        for value in JUNK:
            changed = {**config, field: value}
            if field == "rope_scaling":
                changed.pop("rope_parameters", None)
            try:
                lay_out(read_model(changed).metadata, [])
            except SpecError as error:
                assert str(error).endswith(".")
                assert len(str(error)) < 500


def test_more_experts_in_use_than_there_are_is_refused() -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING["mixtral"](num_local_experts=4, num_experts_per_tok=5).to_dict()
    with pytest.raises(SpecError, match="5 of 4 experts"):
        read_model(config)
