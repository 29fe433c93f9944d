"""Protects: the cache of any family is read from its own fields, with windows and states, and nonsense is refused."""

from typing import Any

import pytest

from tuneserve.errors import SpecError
from tuneserve.native._blocks import BLOCK_SIZE
from tuneserve.native._cache import bytes_per_block
from tuneserve.planner._cache import read_cache
from tuneserve.spec import read_spec

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


def test_a_token_takes_what_the_native_engine_gives_it() -> None:
    import torch

    assert read_cache(LLAMA).per_token == 131072
    assert bytes_per_block(read_spec(LLAMA), torch.bfloat16) == BLOCK_SIZE * 131072


QWEN3_5 = {
    **LLAMA, "model_type": "qwen3_5_text", "head_dim": 256, "full_attention_interval": 4,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
}  # fmt: skip
GEMMA4 = {
    **LLAMA, "model_type": "gemma4_text", "head_dim": 256, "sliding_window": 512, "global_head_dim": 512,
    "num_kv_shared_layers": 12, "attention_k_eq_v": True, "num_global_key_value_heads": 2,
    "vocab_size_per_layer_input": 128256,
}  # fmt: skip


def test_states_and_shared_layers_take_what_the_native_engine_gives_them() -> None:
    import torch

    from tuneserve.model import DeltaState
    from tuneserve.native._states import StateCache

    cache, spec = read_cache(QWEN3_5), read_spec(QWEN3_5)
    assert (cache.full, cache.others) == (8, 24)
    assert bytes_per_block(spec, torch.bfloat16) == BLOCK_SIZE * cache.per_token
    states: list[DeltaState] = list(StateCache(spec, 1, torch.bfloat16, torch.device("cpu")).layers.values())
    assert cache.bytes(1000) == 1000 * cache.per_token + sum(state.memory.nbytes for state in states)
    shared = read_cache(GEMMA4)
    assert (shared.full, shared.windowed, shared.others) == (3, 17, 12)
    assert bytes_per_block(read_spec(GEMMA4), torch.bfloat16) == BLOCK_SIZE * shared.per_token


@pytest.mark.parametrize(
    ("changes", "full", "windowed", "others", "window"),
    [
        ({}, 32, 0, 0, None),
        ({"model_type": "mistral", "sliding_window": 4096}, 0, 32, 0, 4096),
        ({"model_type": "mistral", "sliding_window": None}, 32, 0, 0, None),
        ({"model_type": "qwen2", "sliding_window": 4096}, 32, 0, 0, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, 0, 32, 0, 4096),
        ({"model_type": "gemma2", "sliding_window": 4096}, 16, 16, 0, 4096),
        ({"model_type": "gemma3_text", "sliding_window": 512}, 5, 27, 0, 512),
        ({"layer_types": ["full_attention", "linear_attention"] * 16}, 16, 0, 16, None),
        ({"layer_types": ["full_attention", "sliding_attention"] * 16, "sliding_window": 128}, 16, 16, 0, 128),
    ],
)
def test_windows_bound_the_layers_that_have_them(
    changes: dict[str, Any], full: int, windowed: int, others: int, window: int | None
) -> None:
    cache = read_cache({**LLAMA, **changes})
    assert (cache.full, cache.windowed, cache.others, cache.window) == (full, windowed, others, window)
    assert cache.bytes(100_000) == 4096 * (full * 100_000 + windowed * min(100_000, window or 0))


def test_compressed_caches_and_other_names_are_known() -> None:
    latent = {**LLAMA, "model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert read_cache(latent).per_token == 32 * (512 + 64) * 2
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
    cache = read_cache(gpt2)
    assert (cache.per_token, cache.context) == (12 * 2 * 768 * 2, 1024)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 16_000_000},
        {"num_hidden_layers": "32"},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 5},
        {"hidden_size": -1},
        {"head_dim": 10**30},
        {"sliding_window": 2**40},
        {"layer_types": ["full_attention"]},
        {"layer_types": [1] * 32},
        {"max_position_embeddings": 10**12},
    ],
)
def test_impossible_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        read_cache({**LLAMA, **changes})
