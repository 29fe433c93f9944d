"""Protects: several adapters in one artifact are what PEFT makes of them, and what takes only one refuses more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from tuneserve import artifacts
from tuneserve.adapters import Combination, MergedModel, WeightedAdapter, merge_model
from tuneserve.errors import InputError, ParityError

Make = Callable[..., Path]


@pytest.mark.parametrize("kind", ["cat", "linear", "svd"])
def test_several_adapters_are_what_peft_combines(
    kind: Literal["cat", "linear", "svd"], make_llama: Make, make_lora: Make, tmp_path: Path
) -> None:
    base = make_llama()
    first, second = make_lora(base, "first"), make_lora(base, "second", seed=5)
    result = artifacts.export(
        first, tmp_path / "out", weight=0.7, more_adapters={second: 0.5}, combination=Combination(kind)
    )
    assert result.parity["merged_16bit"].passed
    manifest = artifacts.read_manifest(tmp_path / "out")
    assert manifest is not None
    assert [(adapter["name"], adapter["weight"]) for adapter in manifest["adapters"]] == [
        ("first", 0.7),
        ("second", 0.5),
    ]
    assert manifest["combination"]["kind"] == kind


def test_a_weight_is_checked_like_everything_else(
    make_llama: Make, make_lora: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_lora(make_llama(), scale=0.3)
    assert artifacts.export(adapter, tmp_path / "half", weight=0.5).parity["merged_16bit"].passed

    def forgetful(weights: Any, config: Any, adapters: list[WeightedAdapter], *options: Any) -> MergedModel:
        return merge_model(weights, config, [WeightedAdapter(each.adapter) for each in adapters], *options)

    monkeypatch.setattr("tuneserve.artifacts._planning.merge_model", forgetful)
    with pytest.raises(ParityError):
        artifacts.export(adapter, tmp_path / "wrong", weight=0.5)


@pytest.mark.parametrize("method", ["lora", "gguf-lora"])
def test_what_takes_one_adapter_refuses_more(method: str, make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    base = make_llama()
    adapter, other = make_lora(base), make_lora(base, "other", seed=5)
    with pytest.raises(InputError, match="one adapter as it is"):
        artifacts.export(adapter, tmp_path / "out", method=method, more_adapters={other: 1.0})
    with pytest.raises(InputError, match="of several adapters"):
        artifacts.export(adapter, tmp_path / "out", combination=Combination("svd"))
    with pytest.raises(InputError, match="takes no weight"):
        artifacts.export(base, tmp_path / "out", weight=2.0)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(
    weight: float, make_llama: Make, make_lora: Make, tmp_path: Path
) -> None:
    adapter = make_lora(make_llama())
    with pytest.raises(InputError, match="no finite number"):
        artifacts.export(adapter, tmp_path / "out", weight=weight)
    with pytest.raises(InputError, match="no finite number"):
        artifacts.export(adapter, tmp_path / "out", more_adapters={adapter: weight})
