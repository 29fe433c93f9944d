"""Protects: verification passes a right merge and fails the broken ones that are seen in the field, saying why."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve import artifacts, parity
from tuneserve.errors import InputError, SourceError
from tuneserve.sources import resolve

Tensors = dict[str, torch.Tensor]
Make = Callable[..., Path]
LAYER = "model.layers.1."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_model: Make) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "base", num_hidden_layers=4)


@pytest.fixture(scope="module")
def adapter(base: Path, write_adapter: Make) -> Path:
    return write_adapter(base.parent / "adapter", base, modules=("q_proj", "v_proj", "down_proj"), scale=0.15)


@pytest.fixture(scope="module")
def merged(adapter: Path) -> Path:
    artifacts.export(adapter, adapter.parent / "merged", verify=False)
    return adapter.parent / "merged"


def broken(merged: Path, tmp_path: Path, change: Callable[[Tensors, Tensors], None], base: Path) -> Path:
    """Copy the merged model with ``change`` made to its tensors, given the base's."""
    tensors = load_file(merged / "model.safetensors")
    change(tensors, load_file(base / "model.safetensors"))
    shutil.copytree(merged, tmp_path / "broken")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "broken"


def configured(merged: Path, tmp_path: Path, **changes: Any) -> Path:
    shutil.copytree(merged, tmp_path / "broken")
    config = json.loads((merged / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, **changes}))
    return tmp_path / "broken"


def skip_one_module(tensors: Tensors, base: Tensors) -> None:
    name = f"{LAYER}self_attn.v_proj.weight"
    tensors[name] = base[name]


def scale_deltas(factor: float) -> Callable[[Tensors, Tensors], None]:
    def change(tensors: Tensors, base: Tensors) -> None:
        for name, weight in tensors.items():
            delta = weight.float() - base[name].float()
            tensors[name] = (base[name].float() + factor * delta).bfloat16()

    return change


def swap_deltas(tensors: Tensors, base: Tensors) -> None:
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    deltas = [tensors[name].float() - base[name].float() for name in names]
    for name, delta in zip(names, reversed(deltas), strict=True):
        tensors[name] = (base[name].float() + delta).bfloat16()


def quantise_base(tensors: Tensors, base: Tensors) -> None:
    for name, weight in base.items():
        if weight.dim() == 2 and "proj" in name:
            tensors[name] = (tensors[name].float() + four_bits(weight) - weight.float()).bfloat16()


def four_bits(weight: torch.Tensor) -> torch.Tensor:
    """Round to 15 levels per group of 32, as int4 formats do."""
    groups = weight.float().reshape(-1, 32)
    step = groups.abs().amax(1, keepdim=True) / 7
    return ((groups / step).round() * step).reshape(weight.shape)


def test_a_right_merge_passes(merged: Path, adapter: Path) -> None:
    report = parity.verify(merged, adapter)
    assert report.passed, report.failures
    assert report.mean_kl < 1e-3
    assert report.modules is not None
    assert report.modules.count == 12
    assert report.modules.worst_error < 1.5
    assert report.modules.delta_share == pytest.approx(1, abs=0.05)
    assert report.diagnosis == ()
    assert any("random" in note for note in report.notes)


def test_the_report_is_json_and_the_same_each_time(merged: Path, adapter: Path) -> None:
    first, second = (json.dumps(parity.verify(merged, adapter).to_dict(), allow_nan=False) for _ in range(2))
    assert first == second
    assert json.loads(first)["passed"] is True


@pytest.mark.parametrize(
    ("change", "diagnosis"),
    [
        (skip_one_module, r"merge: the adapter was not merged into model\.layers\.1\.self_attn\.v_proj$"),
        (scale_deltas(2), "merge: every delta is there 2 times; alpha"),
        (scale_deltas(0), "merge: the adapter is in none of its modules; the candidate is the base alone"),
        (swap_deltas, r"merge: the adapter was not merged into model\.layers\.0\.self_attn\.q_proj, model\.layers\.1"),
        (quantise_base, "base precision: the weights differ by"),
    ],
)
def test_a_broken_merge_fails_and_says_what_broke(
    change: Callable[[Tensors, Tensors], None],
    diagnosis: str,
    merged: Path,
    adapter: Path,
    base: Path,
    tmp_path: Path,
) -> None:
    report = parity.verify(broken(merged, tmp_path, change, base), adapter)
    assert not report.passed
    assert re.match(diagnosis, report.diagnosis[0])


def test_a_merge_into_another_base_fails(
    adapter: Path, base: Path, tmp_path: Path, write_model: Make, merged: Path
) -> None:
    other = write_model(tmp_path / "other", num_hidden_layers=4, seed=9)
    artifacts.export(adapter, tmp_path / "merged", base=other, verify=False)
    report = parity.verify(tmp_path / "merged", adapter)
    assert not report.passed
    assert report.diagnosis[0].startswith("another base: ")


@pytest.mark.parametrize(
    "rope", [{"rope_theta": 500000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 9e4}}]
)
def test_a_wrong_rope_base_fails(rope: dict[str, Any], merged: Path, adapter: Path, tmp_path: Path) -> None:
    report = parity.verify(configured(merged, tmp_path, **rope), adapter)
    assert report.config == ("model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq")
    assert not report.passed
    assert report.diagnosis[0].startswith("configuration: ")
    assert "rope" in report.diagnosis[0]


def test_another_activation_is_found_in_the_probabilities(merged: Path, adapter: Path, tmp_path: Path) -> None:
    report = parity.verify(configured(merged, tmp_path, hidden_act="relu"), adapter)
    assert report.probabilities_differ
    assert report.diagnosis == (
        "configuration: the weights agree, but config.json computes something else with them (hidden_act)",
    )


def test_an_adapter_and_a_model_are_compared_with_themselves(adapter: Path, merged: Path, base: Path) -> None:
    same = parity.verify(adapter, adapter)
    assert same.passed
    assert same.mean_kl == pytest.approx(0, abs=1e-9)
    assert same.modules is None
    whole = parity.verify(merged, merged)
    assert whole.passed
    assert whole.modules is not None
    assert (whole.modules.count, whole.modules.delta_share) == (0, None)


def test_settings_that_differ_are_named_whatever_their_keys_are() -> None:
    from transformers import LlamaConfig

    from tuneserve.parity._diagnosis import changed_settings

    given = LlamaConfig(id2label={0: "a", 1: "b"}, rms_norm_eps=1e-5)
    other = LlamaConfig(id2label={}, rms_norm_eps=1e-6)
    assert {"id2label.0", "rms_norm_eps"} <= set(changed_settings(given, other))


def test_other_vocabularies_are_refused(merged: Path, tmp_path: Path, write_model: Make) -> None:
    other = write_model(tmp_path / "other", vocab_size=128)
    with pytest.raises(SourceError, match="vocabulary of 256 tokens"):
        parity.verify(merged, other)


def test_a_method_without_limits_is_refused(merged: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match="no parity limits for the method 'int3'"):
        parity.verify(merged, adapter, method="int3")


def test_the_demo_merge_passes_and_one_skipped_module_of_it_fails(tmp_path: Path) -> None:
    artifacts.export("demo:tickets", tmp_path / "merged", verify=False)
    report = parity.verify(tmp_path / "merged", "demo:tickets")
    assert report.passed, report.failures
    assert report.perplexity is not None
    home = resolve("demo").model_dir

    def skip(tensors: Tensors, base: Tensors) -> None:
        name = "model.layers.12.self_attn.v_proj.weight"
        tensors[name] = base[name]

    report = parity.verify(broken(tmp_path / "merged", tmp_path, skip, home), "demo:tickets")
    assert report.modules is not None
    assert report.modules.skipped == ("model.layers.12.self_attn.v_proj",)
    assert not report.passed
