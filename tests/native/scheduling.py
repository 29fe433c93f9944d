"""What the tests of scheduling share: a core that checks itself, and what Transformers gives for the same prompts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore

TOKENS = 30
GREEDY = SamplingParams(max_tokens=TOKENS, temperature=0)


def start(model: Path, **options: Any) -> NativeCore:
    return NativeCore(EngineConfig(model_dir=str(model), dtype="float32", **options))


def requests_of(prompts: Mapping[str, list[int]], params: SamplingParams) -> list[GenerationRequest]:
    return [GenerationRequest(id=name, prompt_ids=ids, params=params) for name, ids in prompts.items()]


def drain(core: NativeCore, requests: Iterable[GenerationRequest]) -> dict[str, list[int]]:
    """Return the tokens of requests that are added together."""
    produced: dict[str, list[int]] = {}
    for request in requests:
        produced[request.id] = []
        core.add(request)
    while not core.idle:
        for output in core.step():
            assert output.token is not None
            produced[output.id].append(output.token)
        core._scheduler.check()
    return produced


def greedy_tokens(model: Path, prompts: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return the greedy tokens of Transformers for each prompt."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    oracle.generation_config.eos_token_id = None
    found = {}
    for name, ids in prompts.items():
        prompt = torch.tensor([ids])
        out = oracle.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
        found[name] = out[0, len(ids) :].tolist()
    return found


def count_preemptions(core: NativeCore, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows by one with each."""
    preempt, counted = core._scheduler._preempt, list[None]()

    def counting() -> None:
        counted.append(preempt())

    monkeypatch.setattr(core._scheduler, "_preempt", counting)
    return counted
