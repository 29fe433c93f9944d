"""Protects: samples, beams and scores of prompts are those that Transformers and single requests give."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import SamplingParams
from tuneserve.errors import RequestError
from tuneserve.native import LLM, Beam

PROMPTS = [[1, 40, 77], [9], list(range(3, 60))]


@pytest.fixture(scope="module")
def llm(talker: Path) -> LLM:
    return LLM(talker, dtype="float32", max_running=5)


def test_samples_are_single_requests_with_the_seeds_that_follow(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, seed=7)
    samples = llm.generate(PROMPTS, params, n=3)
    assert [completion.prompt_ids for completion in samples] == [prompt for prompt in PROMPTS for _ in range(3)]
    for index, completion in enumerate(samples):
        alone = SamplingParams(max_tokens=8, seed=7 + index % 3)
        assert llm.generate([completion.prompt_ids], alone) == [completion]


def test_samples_without_a_seed_differ(llm: LLM) -> None:
    samples = llm.generate([[5]], SamplingParams(max_tokens=12), n=4)
    assert len({tuple(completion.token_ids) for completion in samples}) > 1


def test_samples_compute_their_prompt_once(talker: Path) -> None:
    llm = LLM(talker, dtype="float32")
    llm.generate([list(range(3, 163))], SamplingParams(max_tokens=1), n=8)
    assert llm.core.stats().prefix_hits >= 7 * 144


@pytest.mark.parametrize("n", [0, -1, 10**9])
def test_too_many_samples_are_refused(n: int, llm: LLM) -> None:
    with pytest.raises(RequestError, match="n is") as caught:
        llm.generate([[5]], n=n)
    assert caught.value.param == "n"


def test_greedy_samples_are_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="greedy"):
        llm.generate([[5]], SamplingParams(temperature=0), n=2)


def test_a_billion_tokens_end_with_the_context(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=10**9)
    (completion,) = llm.generate([[5] * 500], params, ignore_eos=True)
    assert (len(completion.token_ids), completion.finish_reason) == (12, "length")


def test_end_tokens_can_be_ignored(llm: LLM) -> None:
    (end,) = llm.tokenizer.end_token_ids
    params = SamplingParams(temperature=0, max_tokens=3, logit_bias={end: 100.0})
    assert [len(each.token_ids) for each in llm.generate([[5]], params)] == [1]
    assert llm.generate([[5]], params, ignore_eos=True)[0].token_ids == [end] * 3


def transformers_beams(model_dir: Path, prompt: list[int], ends: list[int], **options: Any) -> list[tuple[Any, float]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = ends
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, return_dict_in_generate=True,
        output_scores=True, num_return_sequences=options["num_beams"], **options,
    )  # fmt: skip
    rows = [row[len(prompt) :].tolist() for row in found.sequences]
    lengths = [next((place for place, token in enumerate(row, 1) if token in ends), len(row)) for row in rows]
    rows = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return list(zip(rows, found.sequences_scores.tolist(), strict=True))


RULES: list[dict[str, Any]] = [
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": False},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True},
    {"num_beams": 5, "length_penalty": 2.5, "early_stopping": True},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": False},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_beams_are_those_of_transformers(
    rules: dict[str, Any], make_llama: Callable[..., Path], write_tokenizer: Callable[[Path, int], None]
) -> None:
    def searched(model_dir: Path) -> list[list[Beam]]:
        return LLM(model_dir, dtype="float32").beam_search(
            PROMPTS, beam_width=rules["num_beams"], max_tokens=10, length_penalty=rules["length_penalty"],
            early_stopping=rules["early_stopping"],
        )  # fmt: skip

    def check(model_dir: Path, ends: list[int]) -> list[list[Beam]]:
        found = searched(model_dir)
        for prompt, beams in zip(PROMPTS, found, strict=True):
            expected = transformers_beams(model_dir, prompt, ends, max_new_tokens=10, **rules)
            assert [beam.token_ids for beam in beams] == [tokens for tokens, _ in expected]
            assert [beam.score for beam in beams] == pytest.approx([score for _, score in expected], abs=1e-4)
        return found

    model_dir = make_llama(dtype=torch.float32, vocab_size=300)
    write_tokenizer(model_dir, 300)
    found = check(model_dir, [2])
    # A token that the search went through becomes an end.
    end = found[1][0].token_ids[5]
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"eos_token_id": [end]}))
    assert check(model_dir, [2, end]) != found


def test_one_beam_is_the_greedy_answer(llm: LLM) -> None:
    for prompt in PROMPTS:
        ((beam,),) = llm.beam_search([prompt], beam_width=1, max_tokens=10)
        (completion,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=10))
        assert beam.token_ids == completion.token_ids


@pytest.mark.parametrize("options", [{"beam_width": 0}, {"beam_width": 51}, {"max_tokens": 0}, {"max_tokens": 10**9}])
def test_a_search_that_cannot_be_made_is_refused(options: dict[str, int], llm: LLM) -> None:
    with pytest.raises(RequestError) as caught:
        llm.beam_search([[5]], **options)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(options))
    assert llm.core.idle


def test_perplexity_is_that_of_the_models_loss(talker: Path, llm: LLM) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(talker, dtype=torch.float32).eval()
    texts = ["the cat sat on the mat", "true", '{"name": "Ada"}']
    for text, score in zip(texts, llm.score(texts), strict=True):
        ids = torch.tensor([llm.tokenizer.encode(text, add_special_tokens=True)])
        assert score.token_ids == ids[0].tolist()
        with torch.inference_mode():
            loss = model(ids, labels=ids).loss.item()
        assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_a_text_without_a_second_token_has_no_score(llm: LLM) -> None:
    with pytest.raises(RequestError, match="fewer than two"):
        llm.score([[5]])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_hidden_states_of_transformers(pooling: Any, talker: Path) -> None:
    from transformers import AutoModel

    # A step that holds no whole prompt, and a cache that has them all from the time before.
    llm = LLM(talker, dtype="float32")
    texts: list[Any] = ["the cat sat on the mat", [7], [(3 * index) % 290 for index in range(500)], [7, 8] * 120]
    model = AutoModel.from_pretrained(talker, dtype=torch.float32).eval()
    for _ in range(2):
        states = llm.embed(texts, pooling=pooling)
        assert states.dtype == torch.float32
        for text, state in zip(texts, states, strict=True):
            ids = llm.tokenizer.encode(text, add_special_tokens=True) if isinstance(text, str) else text
            with torch.inference_mode():
                hidden = model(torch.tensor([ids])).last_hidden_state[0]
            expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
            torch.testing.assert_close(state, expected, atol=2e-5, rtol=1e-4)


def test_a_pooling_that_is_not_known_is_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="choose mean or last"):
        llm.embed(["x"], pooling="max")  # type: ignore[arg-type]
