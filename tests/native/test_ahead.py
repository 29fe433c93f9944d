"""Protects: greedy steps that run ahead of the host give the tokens that single steps give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.model import Weights
from tuneserve.model._gpu import GpuDecoder
from tuneserve.native import EngineConfig, NativeCore, _load
from tuneserve.spec import ModelSpec


@pytest.fixture
def directory(make_llama: Callable[..., Path]) -> Path:
    return make_llama(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_hidden_layers=1)


def run(directory: Path, requests: list[GenerationRequest], **options: Any) -> tuple[dict[str, list[Any]], int]:
    core = NativeCore(EngineConfig(model_dir=str(directory), dtype="float32", context_length=64, **options))
    for request in requests:
        core.add(request)
    produced: dict[str, list[Any]] = {request.id: [] for request in requests}
    steps = 0
    while not core.idle:
        steps += 1
        for output in core.step():
            produced[output.id].append((output.token, output.finish_reason, output.failed))
    return produced, steps


def on_gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(spec: ModelSpec, weights: Weights, context: int, *_: str) -> GpuDecoder:
        return GpuDecoder(spec, weights, context, 8)

    monkeypatch.setattr(_load, "prepare_step", prepare)


def requests(**params: Any) -> list[GenerationRequest]:
    settings = {"temperature": 0.0, "max_tokens": 21, **params}
    return [
        GenerationRequest(id=str(index), prompt_ids=[5 + index, 9, 11][: 1 + index], params=SamplingParams(**settings))
        for index in range(3)
    ]


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


def test_what_the_host_chooses_is_not_run_ahead(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, single = run(directory, requests(temperature=1.0, seed=1), cpu_step="eager")
    on_gpu_kernels(monkeypatch)
    assert run(directory, requests(temperature=1.0, seed=1)) == (expected, single)


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


def test_requests_come_and_go_while_steps_are_under_way(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = requests()
    expected, _ = run(directory, [first, third], cpu_step="eager")
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
    core.add(second)
    while not core.idle:
        steps(1)
    assert produced["1"][before:] == run(directory, [second])[0]["1"]
    assert core.stats().cache_usage == 0
