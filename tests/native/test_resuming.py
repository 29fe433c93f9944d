"""Protects: a sequence goes on after tokens that another engine generated as if it had generated them itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tuneserve.engines.contract import FinishReason, GenerationRequest, Grammar, SamplingParams
from tuneserve.errors import RequestError
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

PROMPT = [7, 8, 9, 10, 11, 12, 7, 8, 9]
OFTEN = dict.fromkeys(range(7, 13), 12.0)
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"seed": 3},
    "filtered": {"seed": 5, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    "repeated": {"temperature": 0, "repetition_penalty": 1.3},
    "penalised": {"seed": 1, "presence_penalty": 0.9, "frequency_penalty": 0.7, "logit_bias": OFTEN},
    "banned": {"temperature": 0, "logit_bias": OFTEN, "bad_words": ((7, 8), (9, 10, 11))},
    "stopping": {"seed": 2, "logit_bias": OFTEN, "stop_token_ids": (11,), "min_tokens": 20},
    "grammar": {"seed": 1, "grammar": Grammar(kind="regex", text=r"(ab|cde){20}")},
    "scored": {"temperature": 0, "logprobs": 2},
}


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    reason: FinishReason | None


def answer(engine: NativeCore, request: GenerationRequest) -> Answer:
    engine.add(request)
    tokens: list[int] = []
    reason = None
    while not engine.idle:
        for output in engine.step():
            assert output.failed is None
            assert output.token is not None
            tokens.append(output.token)
            reason = output.finish_reason
    return Answer(tokens, reason)


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "guessing"])
def engine(talker: Path, request: pytest.FixtureRequest) -> NativeCore:
    return NativeCore(EngineConfig.of(resolve(talker), dtype="float32", speculation=request.param))


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_what_follows_is_what_would_have_followed(params: dict[str, Any], engine: NativeCore) -> None:
    request = GenerationRequest(id="x", prompt_ids=PROMPT, params=SamplingParams(**{"max_tokens": 30, **params}))
    whole = answer(engine, request)
    assert len(whole.tokens) > 15
    for count in (1, 7, len(whole.tokens) - 1):
        had = whole.tokens[:count]
        rest = answer(engine, msgspec.structs.replace(request, prompt_ids=PROMPT + had, resumed=count))
        assert had + rest.tokens == whole.tokens
        assert rest.reason == whole.reason


@pytest.mark.parametrize("resumed", [-1, len(PROMPT), 10**9])
def test_a_prompt_of_resumed_tokens_alone_is_refused(resumed: int, engine: NativeCore) -> None:
    with pytest.raises(RequestError, match="leave one for the prompt"):
        engine.add(GenerationRequest(id="x", prompt_ids=PROMPT, params=SamplingParams(), resumed=resumed))


def test_the_prompts_probabilities_do_not_come_twice(engine: NativeCore) -> None:
    params = SamplingParams(prompt_logprobs=0)
    with pytest.raises(RequestError, match="come with the first token"):
        engine.add(GenerationRequest(id="x", prompt_ids=PROMPT, params=params, resumed=2))
