"""Protects: each filter keeps what Transformers keeps, draws follow the probabilities, and rows do not touch."""

from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native._draw import draw
from tuneserve.native._sampler import NONE_LEFT, NOT_FINITE, sample
from tuneserve.native._sequence import Row, Sequence

PROMPT = [3, 5, 5, 60, 9, 3]
FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1e-40},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 1.0, "top_k": 700},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 3.0, "top_p": 0.97},
    {"temperature": 0.9, "min_p": 0.1},
    {"temperature": 2.0, "min_p": 0.001},
    {"temperature": 1.0, "typical_p": 0.5},
    {"temperature": 0.8, "typical_p": 0.05},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9},
    {"temperature": 1.2, "top_p": 0.9, "typical_p": 0.3},
]
VOCABULARIES = [70, 2100]


def a_sequence(prompt: list[int] = PROMPT, produced: tuple[int, ...] = (), **params: Any) -> Sequence:
    sequence = Sequence(GenerationRequest(id="x", prompt_ids=prompt, params=SamplingParams(**params)))
    for token in produced:
        sequence.append(token)
    return sequence


def some_logits(vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def filtered_by_transformers(logits: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    from transformers import generation

    # Transformers divides by a temperature that is 0 in float32.
    chain: list[Any] = [generation.TemperatureLogitsWarper(max(params["temperature"], 1e-30))]
    logits = logits - logits.max()
    kinds = {
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
        "typical_p": generation.TypicalLogitsWarper,
    }
    chain += [kind(params[name]) for name, kind in kinds.items() if name in params]
    scores = logits[None].clone()
    for warper in chain:
        scores = warper(torch.tensor([PROMPT]), scores)
    probabilities: torch.Tensor = scores[0].double().softmax(-1)
    return probabilities


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_draws_follow_the_probabilities_of_transformers(params: dict[str, Any], vocabulary: int) -> None:
    logits, count = some_logits(vocabulary), 1000
    uniforms = [(index + 0.5) / count for index in range(count)]
    expected = filtered_by_transformers(logits, params)
    rows = logits.repeat(count, 1)
    drawn = draw(rows, rows.amax(-1), [SamplingParams(**params)] * count, uniforms)
    assert not (expected[drawn] == 0).any()
    # A token is drawn while the numbers pass over its part of [0, 1), with the tokens in order.
    ends = expected.cumsum(0)[drawn]
    points = torch.tensor(uniforms, dtype=torch.float64)
    assert (points < ends + 1e-6).all()
    assert (points > ends - expected[drawn] - 1e-6).all()


def test_a_row_is_drawn_alike_alone_and_among_others() -> None:
    rows = torch.stack([some_logits(3000, seed) for seed in range(len(FILTERS))])
    rows = (rows * 4).round() / 4  # many ties, as in bfloat16
    params = [SamplingParams(**each) for each in FILTERS]
    for point in (0.03, 0.4, 0.77, 0.999):
        together = draw(rows.clone(), rows.amax(-1), params, [point] * len(params))
        for index, each in enumerate(params):
            alone = rows[index : index + 1].clone()
            assert draw(alone, alone.amax(-1), [each], [point]) == together[index : index + 1]


@pytest.mark.parametrize("vocabulary", [3, 128, 1000])
def test_the_edges_of_the_random_numbers_hit_tokens_that_can_be(vocabulary: int) -> None:
    logits = torch.full((2, vocabulary), -torch.inf)
    logits[:, 1] = 0
    assert draw(logits, logits.amax(-1), [SamplingParams()] * 2, [0.0, 1 - 2**-53]) == [1, 1]


def test_seeds_tell_draws_apart() -> None:
    def draws(seed: int) -> list[int | str]:
        sequence = a_sequence(seed=seed)
        for _ in range(4):
            (token,) = sample(torch.zeros(1, 50000), [Row(sequence)])
            assert isinstance(token, int)
            sequence.append(token)
        return [*sequence.tokens[len(PROMPT) :]]

    assert draws(1) == draws(1)
    assert draws(1) != draws(-1) != draws(2)


def edited(logits: torch.Tensor, row: Row) -> torch.Tensor:
    from tuneserve.native._edits import edit

    changed = logits.clone()[None]
    edit(changed, [row])
    return changed[0]


@pytest.mark.parametrize("ahead", [0, 2])
def test_repetition_and_bad_words_are_those_of_transformers(ahead: int) -> None:
    from transformers import generation

    words = ((7,), (9, 3, 11), (3, 12), (3, 7), (9, 9, 13), (60, 9, 3, 14))
    sequence = a_sequence(repetition_penalty=1.7, bad_words=words)
    sequence.draft = [20, 9, 1]
    logits = some_logits(70)
    for tokens in ([9, 3, 5], [12, 9, 3]):
        past = torch.tensor([[*sequence.tokens, *sequence.draft[:ahead]]])
        expected = generation.RepetitionPenaltyLogitsProcessor(1.7)(past, logits[None].clone())
        expected = generation.NoBadWordsLogitsProcessor([list(word) for word in words])(past, expected)[0]
        # Transformers bans by adding the lowest logit that there is.
        expected[expected < -1e30] = -torch.inf
        torch.testing.assert_close(edited(logits, Row(sequence, ahead)), expected)
        for token in tokens:
            sequence.append(token)


def test_a_bad_word_may_not_be_the_whole_of_the_tokens() -> None:
    assert edited(some_logits(70), Row(a_sequence([4], bad_words=((4, 8),))))[8] == -torch.inf


@pytest.mark.parametrize("ahead", [0, 3])
def test_presence_and_frequency_count_the_output_alone(ahead: int) -> None:
    sequence = a_sequence(produced=(8, 8, 5), presence_penalty=0.5, frequency_penalty=0.25)
    sequence.draft = [8, 1, 1]
    counts = {0: {8: 2, 5: 1}, 3: {8: 3, 5: 1, 1: 2}}[ahead]
    expected = logits = some_logits(70)
    for _ in range(2):  # twice, because nothing of the draft may stay behind
        expected = logits.clone()
        for token, count in counts.items():
            expected[token] -= 0.5 + 0.25 * count
        torch.testing.assert_close(edited(logits, Row(sequence, ahead)), expected)


def test_bias_comes_before_penalties_and_bans_after_them() -> None:
    sequence = a_sequence(logit_bias={3: -40.0, 7: 2.5}, repetition_penalty=2.0, bad_words=((7,),))
    logits = some_logits(70)
    changed = edited(logits, Row(sequence))
    assert changed[3] == pytest.approx(2 * (logits[3].item() - 40))
    assert changed[7] == -torch.inf


def test_end_tokens_wait_for_the_minimum() -> None:
    sequence = a_sequence(produced=(8,), min_tokens=3, stop_token_ids=(2, 4))
    logits = some_logits(70)
    for ahead, banned in ((0, True), (1, True), (2, False)):
        sequence.draft = [8, 8]
        assert (edited(logits, Row(sequence, ahead))[[2, 4]] == -torch.inf).all() == banned


def test_rows_are_edited_apart() -> None:
    many = [
        a_sequence(produced=(1,), frequency_penalty=1.0),
        a_sequence(repetition_penalty=1.5),
        a_sequence(),
        a_sequence(logit_bias={69: 100.0}, temperature=0),
        a_sequence(bad_words=((3,),), min_tokens=1, stop_token_ids=(2,)),
    ]
    rows = torch.stack([some_logits(70, seed) for seed in range(len(many))])
    from tuneserve.native._edits import edit

    together = rows.clone()
    edit(together, [Row(sequence) for sequence in many])
    for index, sequence in enumerate(many):
        torch.testing.assert_close(together[index], edited(rows[index], Row(sequence)))
    assert sample(rows, [Row(sequence) for sequence in many])[3] == 69


EVERYTHING: dict[str, Any] = {
    "temperature": 0.9, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95, "repetition_penalty": 1.2,
    "presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": {1: 3.0}, "bad_words": ((4,), (3, 8)),
    "min_tokens": 2, "stop_token_ids": (2,), "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 3}, EVERYTHING], ids=str)
def test_a_row_that_is_not_finite_fails_alone(poison: float, params: dict[str, Any]) -> None:
    rows = torch.stack([some_logits(70, seed) for seed in range(3)])
    rows[1, 30] = poison
    healthy = sample(rows[::2].clone(), [Row(a_sequence(**EVERYTHING)), Row(a_sequence(seed=5))])
    mixed = sample(rows, [Row(a_sequence(**EVERYTHING)), Row(a_sequence(**params)), Row(a_sequence(seed=5))])
    assert mixed == [healthy[0], NOT_FINITE, healthy[1]]
    assert NOT_FINITE not in healthy


def test_what_leaves_no_token_is_not_blamed_on_the_model() -> None:
    nothing = a_sequence(bad_words=tuple((token,) for token in range(70)))
    assert sample(some_logits(70)[None], [Row(nothing)]) == [NONE_LEFT]
