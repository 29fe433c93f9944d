"""Protects: the engine's own cache and attention do what each family asks of them, whatever shares the batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128, "sliding_window": 9,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
    "rms_norm_eps": 1e-2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {},
    "gemma2": {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"num_hidden_layers": 7, "sliding_window_pattern": 3},
    "gpt_oss": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_5_text": DELTA_NET,
    "qwen3_5_moe_text": {**DELTA_NET, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "global_head_dim": 24,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
    },
}
PROMPTS = {"short": [5, 9, 30], "long": [(7 * index) % 90 + 3 for index in range(40)], "other": [77] * 12}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    core = NativeCore(EngineConfig(model_dir=str(tmp_path), dtype="float32"))
    params = SamplingParams(max_tokens=12, temperature=0)
    for name, ids in PROMPTS.items():
        core.add(GenerationRequest(id=name, prompt_ids=ids, params=params))
    produced: dict[str, list[int]] = {name: [] for name in PROMPTS}
    while not core.idle:
        for output in core.step():
            assert output.token is not None
            produced[output.id].append(output.token)
    for name, ids in PROMPTS.items():
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + produced[name]]), use_cache=False).logits[0]
        # What follows from the prompt and the tokens before it, at each place.
        assert produced[name] == logits[len(ids) - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize("architecture", ["gemma2", "qwen3moe", "gpt-oss"])
def test_greedy_tokens_from_gguf_are_those_of_llama_cpp(
    architecture: str, tmp_path: Path, write_gguf_model: Callable[..., Path], llama_logits: Callable[..., torch.Tensor]
) -> None:
    path = write_gguf_model(tmp_path / "model.gguf", architecture)
    core = NativeCore(EngineConfig.of(resolve(path), dtype="float32"))
    ids = [(7 * index) % 90 + 3 for index in range(12)]
    core.add(GenerationRequest(id="a", prompt_ids=ids, params=SamplingParams(max_tokens=10, temperature=0)))
    produced: list[int] = []
    while not core.idle:
        produced += [output.token for output in core.step() if output.token is not None]
    assert produced == llama_logits(path, ids + produced)[len(ids) - 1 : -1].argmax(-1).tolist()
