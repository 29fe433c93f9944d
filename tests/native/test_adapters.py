"""Protects: the engine runs every adapter whose merged model it can run, as PEFT runs it unmerged."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore

Make = Callable[..., Path]
PROMPT = [1, 5, 9, 30, 2, 77]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


def tuned(base: Path, directory: Path, fields: dict[str, Any]) -> Any:
    """Save an adapter with PEFT and return its model, unmerged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, **fields)).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(directory)
    return adapted


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["v_proj"], "trainable_token_indices": [5, 9]},
        {"target_modules": ["k_proj"], "init_lora_weights": "pissa"},
        {"target_modules": ["q_proj"], "lora_bias": True},
    ],
    ids=str,
)
def test_greedy_tokens_are_those_of_peft(make_llama: Make, tmp_path: Path, fields: dict[str, Any]) -> None:
    base = make_llama(dtype=torch.float32)
    reference = tuned(base, tmp_path / "adapter", fields)
    config = EngineConfig(model_dir=str(base), adapter_dir=str(tmp_path / "adapter"), dtype="float32", max_running=1)
    core = NativeCore(config)
    core.add(GenerationRequest(id="a", prompt_ids=PROMPT, params=SamplingParams(max_tokens=12, temperature=0)))
    produced: list[int | None] = []
    while not core.idle:
        produced += [output.token for output in core.step()]
    expected = list(PROMPT)
    with torch.no_grad():
        for _ in range(12):
            expected.append(int(reference(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
    assert produced == expected[len(PROMPT) :]
