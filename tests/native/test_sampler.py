"""Protects: each filter keeps the tokens that Transformers keeps, and draws follow the probabilities."""

from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native._sampler import sample
from tuneserve.native._sequence import Sequence

CASES = [
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 0.9, "min_p": 0.1},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 1.0, "top_p": 0.01},
]


def draw(logits: torch.Tensor, sequence: Sequence) -> int:
    """Draw a token, and leave only the random stream moved on."""
    (token,) = sample(logits.clone()[None], [sequence])
    assert token is not None
    sequence.append(token)
    sequence.tokens.pop()
    return token


def expected_probabilities(logits: torch.Tensor, prompt: list[int], params: dict[str, Any]) -> torch.Tensor:
    from transformers import generation

    chain: list[Any] = []
    if penalty := params.get("repetition_penalty"):
        chain.append(generation.RepetitionPenaltyLogitsProcessor(penalty))
    chain.append(generation.TemperatureLogitsWarper(params["temperature"]))
    if top_k := params.get("top_k"):
        chain.append(generation.TopKLogitsWarper(top_k))
    if top_p := params.get("top_p"):
        chain.append(generation.TopPLogitsWarper(top_p))
    if min_p := params.get("min_p"):
        chain.append(generation.MinPLogitsWarper(min_p))
    scores = logits[None].clone()
    for processor in chain:
        scores = processor(torch.tensor([prompt]), scores)
    return scores[0].softmax(-1)


@pytest.mark.parametrize("params", CASES, ids=str)
def test_draws_follow_the_probabilities_of_transformers(params: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, generator=generator) * 2
    prompt = [3, 5, 5, 60]
    expected = expected_probabilities(logits, prompt, params)
    request = GenerationRequest(id="x", prompt_ids=prompt, params=SamplingParams(seed=1, **params))
    sequence, draws = Sequence(request), 4000
    counts = torch.zeros(64)
    for _ in range(draws):
        counts[draw(logits, sequence)] += 1
    assert not counts[expected == 0].any()
    # Five standard deviations of the count of the most variable token.
    assert ((counts / draws - expected).abs() < 5 * 0.5 / draws**0.5).all()


def test_seeds_tell_draws_apart() -> None:
    logits = torch.zeros(50000)

    def draws(seed: int) -> list[int]:
        request = GenerationRequest(id="x", prompt_ids=[1], params=SamplingParams(seed=seed))
        sequence = Sequence(request)
        return [draw(logits, sequence) for _ in range(4)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(-1) != draws(2)


def test_a_wide_nucleus_over_a_large_vocabulary_is_exact() -> None:
    logits = torch.linspace(0, 1, 5000)
    request = GenerationRequest(id="x", prompt_ids=[1], params=SamplingParams(seed=1, top_p=0.5))
    sequence = Sequence(request)
    probabilities = logits.softmax(-1).flip(0)
    kept = int((probabilities.cumsum(0) - probabilities < 0.5).sum())
    drawn = {draw(logits, sequence) for _ in range(300)}
    assert all(token >= 5000 - kept for token in drawn)
    assert len(drawn) > 200
