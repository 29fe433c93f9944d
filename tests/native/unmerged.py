"""Adapters made with PEFT, and what PEFT computes with them unmerged."""

from pathlib import Path
from typing import Any

import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import NativeCore

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tuned(base: Path, directory: Path, *, seed: int = 0, spread: float = 0.1, **fields: Any) -> Any:
    """Save an adapter with PEFT, B at random too, and return its model, unmerged and in float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, **fields})).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * spread
    adapted.save_pretrained(directory)
    return adapted


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the log-probability of each token but the first, float32 (tokens - 1)."""
    with torch.no_grad():
        scores: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return scores[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def scored(core: NativeCore, asked: list[tuple[list[int], str | None]]) -> list[torch.Tensor]:
    """Return the same of the engine, of prompts with their adapters computed together."""
    for index, (ids, adapter) in enumerate(asked):
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        core.add(GenerationRequest(id=str(index), prompt_ids=ids, params=params, adapter=adapter))
    found: dict[str, torch.Tensor] = {}
    while not core.idle:
        for output in core.step():
            assert output.prompt_logprobs is not None, output
            found[output.id] = torch.tensor([entry.logprob for entry in output.prompt_logprobs])
    return [found[str(index)] for index in range(len(asked))]
