"""Protects: guessing tokens changes how many steps they take, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneserve.engines.contract import GenerationRequest, Grammar, SamplingParams
from tuneserve.errors import InputError
from tuneserve.native import EngineConfig, NativeCore, Output
from tuneserve.native._draft import Drafter
from tuneserve.sources import resolve

REPEATING = [7, 8, 9, 10, 11, 12] * 6
PROMPTS = {
    "repeating": REPEATING,
    "short": [5],
    "pair": [40, 41],
    "long": [(index * 7) % 90 + 3 for index in range(200)],
}
AGAIN = dict.fromkeys(range(7, 13), 12.0)
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"seed": 3},
    "cold": {"seed": 3, "temperature": 0.3},
    "filtered": {"seed": 5, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    "penalised": {"temperature": 0, "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "biased": {"seed": 1, "logit_bias": AGAIN},
    "banned": {"temperature": 0, "logit_bias": AGAIN, "bad_words": ((7, 8), (9, 10, 11), (300 - 1,))},
    "stopping": {"seed": 2, "logit_bias": AGAIN, "stop_token_ids": (11,), "min_tokens": 9},
    "ended": {"seed": 2, "logit_bias": AGAIN, "stop_token_ids": (11,)},
    "brief": {"temperature": 0, "max_tokens": 3},
    "one": {"temperature": 0, "max_tokens": 1},
    "scored": {"temperature": 0, "logprobs": 3, "prompt_logprobs": 1},
    "grammar": {"seed": 1, "grammar": Grammar(kind="regex", text=r"(ab|cde){20}")},
    "object": {
        "temperature": 0,
        "grammar": Grammar(kind="json_schema", text=json.dumps({"enum": ["a" * 40, "b" * 9]})),
    },
}


def core(model: Path, speculation: int, **options: Any) -> NativeCore:
    return NativeCore(EngineConfig.of(resolve(model), dtype="float32", speculation=speculation, **options))


def requests(params: dict[str, Any], prompts: dict[str, list[int]] = PROMPTS) -> list[GenerationRequest]:
    settings = SamplingParams(**{"max_tokens": 60, **params})
    return [GenerationRequest(id=name, prompt_ids=ids, params=settings) for name, ids in prompts.items()]


def run(engine: NativeCore, some: list[GenerationRequest]) -> tuple[dict[str, list[Output]], int]:
    """Return the outputs of each request, and in how many steps they came."""
    outputs: dict[str, list[Output]] = {request.id: [] for request in some}
    steps = 0
    for request in some:
        engine.add(request)
    while not engine.idle:
        produced = engine.step()
        steps += bool(produced)
        engine._scheduler.check()
        for output in produced:
            assert output.failed is None
            outputs[output.id].append(output)
    return outputs, steps


@pytest.fixture(scope="module")
def plain(talker: Path) -> NativeCore:
    return core(talker, 0)


@pytest.fixture(scope="module")
def guessing(talker: Path) -> NativeCore:
    return core(talker, 6)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_tokens_are_those_without_it(params: dict[str, Any], plain: NativeCore, guessing: NativeCore) -> None:
    expected, _ = run(plain, requests(params))
    found, _ = run(guessing, requests(params))
    for name, outputs in expected.items():
        assert [output.token for output in found[name]] == [output.token for output in outputs]
        assert [output.finish_reason for output in found[name]] == [output.finish_reason for output in outputs]
        assert (found[name][0].prompt_logprobs is None) == (outputs[0].prompt_logprobs is None)
        for mine, theirs in zip(found[name], outputs, strict=True):
            assert (mine.logprob is None) == (theirs.logprob is None)
            if mine.logprob and theirs.logprob:
                assert mine.logprob.token_id == mine.token
                assert mine.logprob.logprob == pytest.approx(theirs.logprob.logprob, abs=2e-5)


@pytest.mark.parametrize("name", ["biased", "stopping", "grammar", "object"])
def test_what_repeats_takes_fewer_steps(name: str, guessing: NativeCore) -> None:
    cold = PARAMS[name] | {"temperature": 0.0}
    outputs, steps = run(guessing, requests(cold, {"repeating": REPEATING}))
    assert steps < len(outputs["repeating"])


def test_a_small_cache_and_preemption_change_nothing(talker: Path, plain: NativeCore) -> None:
    small = core(talker, 6, cache_tokens=512, context_length=300)
    prompts = {f"{name}{copy}": [*ids, copy + 3] for copy in range(3) for name, ids in PROMPTS.items()}
    params = {"seed": 4, "logit_bias": AGAIN, "max_tokens": 50}
    expected, _ = run(plain, requests(params, prompts))
    found, _ = run(small, requests(params, prompts))
    assert {name: [each.token for each in outputs] for name, outputs in found.items()} == {
        name: [each.token for each in outputs] for name, outputs in expected.items()
    }


def test_no_guess_goes_beyond_the_context(talker: Path) -> None:
    short = core(talker, 6, context_length=64)
    outputs, _ = run(short, requests({"temperature": 0, "logit_bias": AGAIN, "max_tokens": None}, {"x": REPEATING}))
    assert len(outputs["x"]) == 64 - len(REPEATING)
    assert outputs["x"][-1].finish_reason == "length"


def test_the_longest_run_of_last_tokens_is_followed() -> None:
    tokens = [1, 2, 3, 4, 50, 9, 3, 4, 60, 8, 2, 3, 4]
    assert Drafter(tokens, 3, 100).propose(tokens, 8) == [50, 9, 3]
    assert Drafter(tokens, 3, 100).propose(tokens, 1) == [50]
    assert Drafter(tokens, 3, 15).propose(tokens, 8) == [50]
    assert Drafter(tokens, 3, 14).propose(tokens, 8) == []
    assert Drafter([1, 2, 3], 3, 100).propose([1, 2, 3], 8) == []
    assert Drafter([1], 3, 100).propose([1], 8) == []


def test_guesses_that_fail_are_given_up_for_a_while() -> None:
    tokens = [1, 2, 3, 4, 1, 2]
    drafter = Drafter(tokens, 4, 10_000)
    lengths = []
    for _ in range(40):
        guess = drafter.propose(tokens, 8)
        lengths.append(len(guess))
        if guess:
            drafter.learn(len(guess), 0)
    assert lengths[:4] == [4, 2, 1, 0]
    assert 0 < sum(length > 0 for length in lengths[4:]) <= 3
    drafter = Drafter(tokens, 4, 10_000)
    drafter.learn(4, 0)
    drafter.learn(2, 2)
    assert len(drafter.propose(tokens, 8)) == 4


@pytest.mark.parametrize("speculation", [-1, 16])
def test_an_odd_number_of_guesses_is_refused(speculation: int, talker: Path) -> None:
    with pytest.raises(InputError, match="speculation"):
        core(talker, speculation)
