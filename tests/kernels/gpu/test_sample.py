"""Rows that ask for different things are sampled in one launch, each as if alone, and as the engine's CPU path does."""

from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.kernels.gpu.sample import SamplingResults, SamplingRows, sample, sample_reference
from tuneserve.native._sampler import sample as sample_on_host
from tuneserve.native._sequence import Row, Sequence

VOCABULARY, STEPS = 9000, 2


def rows_of(asked: list[dict[str, Any]]) -> SamplingRows:
    """Return rows with these parameters, and counts and edits where they are given."""
    names = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0, "frequency": 0.0}
    flat: list[tuple[int, Any, Any, Any]] = []
    places, used = [0], []
    for each in asked:
        edits: dict[int, list[Any]] = {token: [*edit, 0] for token, edit in each.get("edits", {}).items()}
        for token, count in each.get("counts", {}).items():
            edits.setdefault(token, [0.0, 0, 0])[2] = count
        used.append(len(edits))
        flat += [(token, bias, until, count) for token, (bias, until, count) in edits.items()]
        flat += [(-7, 99.0, 99, 99)] * STEPS
        places.append(len(flat))
    generator = torch.Generator().manual_seed(5)

    def whole(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    return SamplingRows(
        numbers=torch.tensor([[each.get(n, d) for n, d in names.items()] for each in asked], dtype=torch.float64),
        top_k=whole([each.get("top_k", 0) for each in asked]),
        asked=whole([each.get("asked", -1) for each in asked]),
        penalised=whole([int("counts" in each) for each in asked]),
        edits=whole(places),
        used=whole(used),
        tokens=whole([token for token, *_ in flat]),
        bias=torch.tensor([bias for _, bias, *_ in flat], dtype=torch.float32),
        until=whole([until for *_, until, _ in flat]),
        counts=whole([count for *_, count in flat]),
        raw=torch.zeros(len(flat)),
        uniforms=torch.rand(len(asked), STEPS, dtype=torch.float64, generator=generator),
        step=whole([0] * len(asked)),
        produced=whole([each.get("produced", 0) for each in asked]),
    )


def copied(part: SamplingRows | SamplingResults) -> Any:
    return type(part)(**{name: value.clone() for name, value in vars(part).items()})


COUNTED = {"counts": {10: 1, 11: 3, 12: 9, 8999: 2}, "repetition": 1.3, "presence": 0.5, "frequency": 0.25}
ASKED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.2, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.5, "top_k": 2100, "top_p": 0.95, "min_p": 0.001},
    {"temperature": 1.0, "top_p": 0.999},
    {"temperature": 1e-40},
    {**COUNTED},
    {**COUNTED, "temperature": 2.0, "top_k": 20, "top_p": 0.5, "asked": 3},
    {"edits": {7: (30.0, 0), 9: (40.0, 1), 8: (-5.0, 0)}, "asked": 20},
    {"edits": {7: (30.0, 0), 9: (40.0, 1)}, "produced": 1, "temperature": 0.5, "asked": 0},
    {**COUNTED, "edits": {12: (20.0, 0)}, "asked": 2},
]


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_rows_are_sampled_as_they_ask(spread: float) -> None:
    torch.manual_seed(1)
    ours, theirs = rows_of(ASKED), rows_of(ASKED)
    results = [SamplingResults.of(len(ASKED), VOCABULARY, torch.device("cpu")) for _ in range(2)]
    ids, expected = (torch.zeros(len(ASKED), dtype=torch.int64) for _ in range(2))
    lengths = torch.ones(len(ASKED), dtype=torch.int32)
    counted = lengths.clone()
    for _ in range(STEPS):
        logits = torch.randn(len(ASKED), VOCABULARY) * spread
        sample(logits.clone(), ids, lengths, ours, results[0])
        sample_reference(logits.clone(), expected, counted, theirs, results[1])
        assert ids.tolist() == expected.tolist()
        torch.testing.assert_close(results[0].logprobs, results[1].logprobs, rtol=1e-5, atol=1e-5)
        assert torch.equal(results[0].likeliest, results[1].likeliest)
        for name in ("counts", "tokens", "used", "step", "produced"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(lengths, counted)


def test_ties_at_a_filter_are_all_kept() -> None:
    logits = torch.full((2, VOCABULARY), -10.0)
    logits[:, [5, 100, 4100, 8900]] = 1.0
    drawn = set()
    for step in range(8):
        asked = rows_of([{"temperature": 1.0, "top_k": 2}, {"temperature": 1.0, "top_p": 0.3}])
        asked.uniforms.fill_(step / 8)
        ids, lengths = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int32)
        sample(logits.clone(), ids, lengths, asked, SamplingResults.of(2, VOCABULARY, logits.device))
        drawn.add(tuple(ids.tolist()))
    assert drawn == {(token, token) for token in (5, 100, 4100, 8900)}


def test_rows_that_are_not_finite_or_not_there() -> None:
    logits = torch.randn(5, VOCABULARY)
    logits[0, 3], logits[1], logits[2, 9] = torch.nan, -torch.inf, torch.inf
    ids, lengths = torch.full((5,), 77), torch.tensor([1, 1, 1, 0, 4], dtype=torch.int32)
    asked = rows_of([{"temperature": 1.0}] * 5)
    sample(logits, ids, lengths, asked, SamplingResults.of(5, VOCABULARY, logits.device))
    assert ids[:4].tolist() == [-1, -1, -1, 77] and 0 <= int(ids[4]) < VOCABULARY
    assert lengths.tolist() == [2, 2, 2, 0, 5]
    assert asked.step.tolist() == [1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.8},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.1, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.0, "top_k": 1000},
    ],
)
def test_seeded_draws_are_those_of_the_cpu(params: dict[str, Any]) -> None:
    torch.manual_seed(2)
    count = 12
    sequences = [
        Sequence(GenerationRequest(id=str(seed), prompt_ids=[1], params=SamplingParams(seed=seed, **params)))
        for seed in range(count)
    ]
    logits = torch.randn(count, VOCABULARY) * 2
    asked = rows_of([params] * count)
    asked.uniforms[:, 0] = torch.tensor([sequence.uniform() for sequence in sequences], dtype=torch.float64)
    ids, lengths = torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.int32)
    sample(logits.clone(), ids, lengths, asked, SamplingResults.of(count, VOCABULARY, logits.device))
    assert ids.tolist() == sample_on_host(logits, [Row(sequence) for sequence in sequences])
