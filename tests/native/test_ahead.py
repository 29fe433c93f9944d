"""Protects: steps that run ahead of the host give the tokens that single steps give, greedy or sampled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, Grammar, SamplingParams
from tuneserve.model import Weights, _gpu_bucket
from tuneserve.model._gpu import GpuDecoder
from tuneserve.native import EngineConfig, NativeCore, _load, _runner, _sampled
from tuneserve.native._engine import Output
from tuneserve.native._sequence import Sequence
from tuneserve.spec import ModelSpec


@pytest.fixture
def directory(make_llama: Callable[..., Path]) -> Path:
    return make_llama(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_hidden_layers=1)


def outputs(directory: Path, requests: list[GenerationRequest], **options: Any) -> tuple[dict[str, list[Output]], int]:
    core = NativeCore(EngineConfig(model_dir=str(directory), dtype="float32", context_length=64, **options))
    for request in requests:
        core.add(request)
    produced: dict[str, list[Output]] = {request.id: [] for request in requests}
    steps = 0
    while not core.idle:
        steps += 1
        for output in core.step():
            produced[output.id].append(output)
    return produced, steps


def run(directory: Path, requests: list[GenerationRequest], **options: Any) -> tuple[dict[str, list[Any]], int]:
    """Return what came of each request, without log-probabilities, and in how many steps."""
    produced, steps = outputs(directory, requests, **options)
    told = {name: [(each.token, each.finish_reason, each.failed) for each in found] for name, found in produced.items()}
    return told, steps


def on_gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 64 programs for each sequence all but the first would find no tile of so short a context, and the interpreter
    # took nine tenths of the time to begin them.
    monkeypatch.setattr(_gpu_bucket, "_MOST_SPLITS", 2)

    def prepare(spec: ModelSpec, weights: Weights, context: int, *_: str) -> GpuDecoder:
        return GpuDecoder(spec, weights, context, 8)

    monkeypatch.setattr(_load, "prepare_step", prepare)


def requests(**params: Any) -> list[GenerationRequest]:
    settings = {"temperature": 0.0, "max_tokens": 21, **params}
    return [
        GenerationRequest(id=str(index), prompt_ids=[5 + index, 9, 11][: 1 + index], params=SamplingParams(**settings))
        for index in range(3)
    ]


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 1.2, "top_p": 0.8, "logprobs": 3},
    {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2, "logprobs": 0},
    {"temperature": 0.0, "frequency_penalty": 1.5, "bad_words": ((7,), (8,)), "logit_bias": {9: 4.0, 11: -50.0}},
    {"temperature": 1.0, "top_k": 30, "min_p": 0.01, "min_tokens": 5, "stop_token_ids": tuple(range(0, 256, 3))},
]


def sampled_requests(*kinds: dict[str, Any]) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            id=str(index), prompt_ids=[5 + index, 9, 5], params=SamplingParams(max_tokens=9, seed=index, **kind)
        )
        for index, kind in enumerate(kinds)
    ]


def test_what_is_sampled_is_the_same_in_fewer_steps(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, single = outputs(directory, sampled_requests(*SAMPLED), cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    found, steps = outputs(directory, sampled_requests(*SAMPLED))
    assert steps <= 3 < single
    for name, theirs in expected.items():
        ours = found[name]
        assert [(one.token, one.finish_reason) for one in ours] == [(one.token, one.finish_reason) for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert (one.logprob is None) == (other.logprob is None)
            if one.logprob is not None and other.logprob is not None:
                assert one.logprob.token_id == one.token
                assert one.logprob.logprob == pytest.approx(other.logprob.logprob, abs=2e-5)
                assert [token for token, _ in one.logprob.top] == [token for token, _ in other.logprob.top]
                values = [value for _, value in other.logprob.top]
                assert [value for _, value in one.logprob.top] == pytest.approx(values, abs=2e-5)
    # It ended when it might, within steps that ran ahead, and not before.
    assert found["5"][-1].finish_reason == "stop" and len(found["5"]) > 5


def test_tokens_after_prompts_are_sampled_without_the_host(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sampled_requests(*SAMPLED)
    long = msgspec.structs.replace(wanted[1], id="long", prompt_ids=list(range(5, 45)))
    expected, _ = outputs(directory, [*wanted, long], cpu_step="eager", max_running=7)
    on_gpu_kernels(monkeypatch)
    monkeypatch.setattr(_runner, "choose", None)
    core = NativeCore(EngineConfig(model_dir=str(directory), dtype="float32", context_length=64, max_running=7))
    for request in wanted:
        core.add(request)
    found: dict[str, list[Output]] = {request.id: [] for request in [*wanted, long]}
    for step in range(100):
        if step == 1:
            # Its prompt is computed beside tokens that others sample.
            core.add(long)
        for output in core.step():
            found[output.id].append(output)
    assert core.idle
    for name, theirs in expected.items():
        assert [one.token for one in found[name]] == [one.token for one in theirs]


def test_counts_are_taken_from_the_host_when_room_runs_out(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"temperature": 0.7, "frequency_penalty": 1.0, "repetition_penalty": 1.2}
    expected, _ = outputs(directory, sampled_requests(kind), cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    monkeypatch.setattr(_runner, "ROOM", 6)
    monkeypatch.setattr(_sampled, "ROOM", 6)
    found, steps = outputs(directory, sampled_requests(kind))
    assert found == expected
    assert steps <= 5


def test_nothing_left_to_choose_fails_its_sequence_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9},
        {"temperature": 0.9, "bad_words": tuple((token,) for token in range(256))},
    ]
    expected, _ = outputs(directory, sampled_requests(*kinds), cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    # Of a prompt of one token the first is chosen as all others are.
    short = [msgspec.structs.replace(one, prompt_ids=[5]) for one in sampled_requests(*kinds)]
    found, _ = outputs(directory, short)
    assert found["1"][-1].failed == expected["1"][-1].failed
    assert found["1"][-1].failed is not None
    assert all(one.failed is None for one in found["0"])


@pytest.mark.parametrize("cache_tokens", [None, 96])
def test_tokens_are_the_same_in_fewer_steps(
    cache_tokens: int | None, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, single = run(directory, requests(), cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    found, steps = run(directory, requests(), cache_tokens=cache_tokens)
    assert found == expected
    assert steps <= 6 < single


def test_a_sequence_ends_within_what_was_run_ahead(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run(directory, requests(), cpu_step="eager")
    end = expected["0"][10][0]
    params = {"stop_token_ids": (end,)}
    expected, _ = run(directory, requests(**params), cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    found, _ = run(directory, requests(**params))
    assert found == expected
    assert found["0"][-1][:2] == (end, "stop")


@pytest.mark.parametrize(
    ("kind", "alone"),
    [
        ({"typical_p": 0.9}, False),
        ({"bad_words": ((3, 4),)}, False),
        ({"logprobs": 21}, False),
        ({"prompt_logprobs": 1}, False),
        ({"grammar": Grammar(kind="regex", text="a+")}, False),
        ({"bad_words": ((3,),), "logprobs": 20, "top_k": 5, "logit_bias": {3: 1.0}, "min_tokens": 4}, True),
    ],
)
def test_what_only_the_host_can_do_is_left_to_it(kind: dict[str, Any], alone: bool) -> None:
    (request,) = sampled_requests(kind)
    assert Sequence(request).steps_alone == alone


def test_a_batch_in_which_the_host_chooses_is_not_run_ahead(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        msgspec.structs.replace(one, params=msgspec.structs.replace(one.params, max_tokens=4))
        for one in sampled_requests({"temperature": 1.0, "typical_p": 0.9}, {"temperature": 0.0})
    ]
    expected = outputs(directory, wanted, cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    assert outputs(directory, wanted) == expected


def test_numbers_that_are_not_finite_fail_their_sequence_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = run(directory, requests(), cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    greedily = GpuDecoder.decode_greedily

    def broken(*args: Any) -> torch.Tensor:
        chosen = greedily(*args)
        if chosen.shape[1] == 3:
            chosen[-1, 1] = -1
        return chosen

    monkeypatch.setattr(GpuDecoder, "decode_greedily", broken)
    found, _ = run(directory, requests())
    assert found["0"] == expected["0"]
    assert found["2"] == expected["2"]
    assert found["1"][-1][2]


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "seed": 3, "presence_penalty": 0.5}])
def test_requests_come_and_go_while_steps_are_under_way(
    params: dict[str, Any], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = requests(max_tokens=13, **params)
    expected, _ = run(directory, [first, third], cpu_step="eager")
    last = msgspec.structs.replace(second, params=msgspec.structs.replace(second.params, max_tokens=9))
    alone, _ = run(directory, [last], cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    core = NativeCore(EngineConfig(model_dir=str(directory), dtype="float32", context_length=64))
    produced: dict[str, list[Any]] = {"0": [], "1": [], "2": []}

    def steps(count: int) -> None:
        for _ in range(count):
            for output in core.step():
                produced[output.id].append((output.token, output.finish_reason, output.failed))

    core.add(first)
    core.add(second)
    steps(2)
    core.cancel("1")
    before = len(produced["1"])
    core.add(third)
    while not core.idle:
        steps(1)
    assert {"0": produced["0"], "2": produced["2"]} == expected
    assert 0 < before == len(produced["1"])
    # What was launched for nobody does no harm to who comes next.
    core.add(last)
    while not core.idle:
        steps(1)
    assert produced["1"][before:] == alone["1"]
    assert core.stats().cache_usage == 0
