"""Protects: load on the native engine is closed, open, shared and spread over adapters as asked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tuneserve.bench import Load, Prompt, Workload, measure
from tuneserve.bench.source import SourceTarget
from tuneserve.errors import InputError
from tuneserve.sources import ResolvedSource, resolve

Make = Callable[..., Path]
SMALL = Workload(concurrency=(2,), requests=5, prompt_tokens=40, new_tokens=3, runs=1)


@pytest.fixture
def source(make_llama: Make) -> ResolvedSource:
    directory = make_llama()
    (directory / "tokenizer.json").write_text("{}")
    return resolve(directory)


def test_closed_load_is_limited_by_bandwidth(source: ResolvedSource) -> None:
    (result,) = measure(SourceTarget(source, SMALL), SMALL)
    assert (result.requests, result.tokens, result.failed, result.rate) == (5, 15, 0, None)
    assert result.limit is not None and result.limit > result.tokens_per_second


def test_open_load_counts_from_when_requests_arrive(source: ResolvedSource) -> None:
    open_load = replace(SMALL, rates=(200.0,))
    target = SourceTarget(source, open_load)
    (result,) = measure(target, open_load)
    assert (result.requests, result.tokens, result.rate, result.limit) == (5, 15, 200.0, None)
    arrivals = (0.0, 0.02, 0.04)
    timed = target.run(
        Load(prompts=[Prompt([5, 6, 7])] * 3, new_tokens=3, concurrency=3, arrivals=arrivals), lambda: None
    )
    assert [each.sent - timed[0].sent for each in timed] == pytest.approx(arrivals)
    assert all(each.sent < each.pieces[0] and len(each.pieces) == 3 for each in timed)


def test_a_shared_prefix_is_found_in_the_cache(source: ResolvedSource) -> None:
    shared = replace(SMALL, shared_prefix=32)
    for workload, found in ((SMALL, 0), (shared, 5 * 32)):
        target = SourceTarget(source, workload)
        loads = workload.loads(target.vocab_size, ())
        (level,) = workload.levels
        target.run(loads.warm_up(level, 1), lambda: None)
        before = target.stats().prefix_hits
        target.run(loads.run(level), lambda: None)
        assert target.stats().prefix_hits - before == found


def test_adapters_share_the_load(source: ResolvedSource, make_lora: Make) -> None:
    adapters = {name: make_lora(source.model_dir, name) for name in ("a", "b")}
    target = SourceTarget(source, SMALL, adapters=adapters)
    (result,) = measure(target, SMALL)
    assert (result.models, result.failed, result.about["adapters"]) == (2, 0, "a, b")


def test_an_adapter_over_another_base_is_refused(source: ResolvedSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adapter"):
        SourceTarget(source, SMALL, adapters={"a": tmp_path})
