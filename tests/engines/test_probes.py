"""Protects: a running engine is compared with the unmerged source through the contract, and a broken merge is found."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.model_engine import ModelEngine
from tuneserve import artifacts
from tuneserve.engines.probes import Verdict, verify_engine
from tuneserve.errors import EngineError, InputError, ParityError
from tuneserve.sources import resolve

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_model: Make) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, write_adapter: Make) -> Path:
    return write_adapter(base.parent / "adapter", base, scale=0.3)


@pytest.fixture(scope="module")
def merged(adapter: Path) -> Path:
    artifacts.export(adapter, adapter.parent / "merged", verify=False)
    return adapter.parent / "merged"


def verify(engine: ModelEngine, source: Path, adapter: str | None = None, method: str = "merged_16bit") -> Verdict:
    return asyncio.run(asyncio.wait_for(verify_engine(engine, resolve(source), method, adapter), 120))


def test_the_merged_model_passes_at_every_position(merged: Path, adapter: Path) -> None:
    verdict = verify(ModelEngine(merged), adapter)
    assert verdict.passed
    assert 0 <= verdict.mean_kl < 1e-3
    assert (verdict.prompts, verdict.positions) == (8, 8 * 48)


def test_without_logprobs_of_prompts_a_few_prefixes_do(merged: Path, adapter: Path) -> None:
    engine = ModelEngine(merged, lacks=("prompt_logprobs",), context_length=40)
    assert verify(engine, adapter).positions == 8 * 4
    assert {len(prompt) for prompt in engine.prompts} == {9, 19, 29, 39}


def test_each_adapter_is_asked_for_by_name(base: Path, merged: Path, adapter: Path) -> None:
    engine = ModelEngine(base, adapters={"right": merged, "wrong": base})
    assert verify(engine, adapter, "right", "lora").passed
    with pytest.raises(ParityError, match=r"what exact serves as wrong is not the model that was trained \(mean KL"):
        verify(engine, adapter, "wrong", "lora")


def test_an_engine_that_tells_nothing_cannot_be_checked(merged: Path, adapter: Path) -> None:
    with pytest.raises(EngineError, match="gives no log-probabilities"):
        verify(ModelEngine(merged, lacks=("silent",)), adapter)


def test_a_reference_that_does_not_load_is_told(merged: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match="no parity limits for the method 'unheard-of'"):
        verify(ModelEngine(merged), adapter, method="unheard-of")
