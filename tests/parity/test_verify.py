"""Protects: verification passes a right merge and fails the broken ones that are seen in the field."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve import artifacts, parity
from tuneserve.sources import resolve

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    artifacts.export("demo:tickets", out, verify=False)
    return out


def broken(merged: Path, tmp_path: Path, change: Callable[[Tensors, Tensors], None]) -> Path:
    """Copy the merged model with ``change`` made to its tensors, given the base's."""
    base = load_file(resolve("demo").model_dir / "model.safetensors")
    tensors = load_file(merged / "model.safetensors")
    change(tensors, base)
    directory = tmp_path / "broken"
    directory.mkdir()
    for path in merged.iterdir():
        if path.suffix != ".safetensors":
            (directory / path.name).write_bytes(path.read_bytes())
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def skip_one_module(tensors: Tensors, base: Tensors) -> None:
    name = "model.layers.12.self_attn.v_proj.weight"
    tensors[name] = base[name]


def double_alpha(tensors: Tensors, base: Tensors) -> None:
    for name, weight in tensors.items():
        if not torch.equal(weight, base[name]):
            tensors[name] = (2 * weight.float() - base[name].float()).bfloat16()


def swap_q_and_k(tensors: Tensors, base: Tensors) -> None:
    name = "model.layers.5.self_attn.{}_proj.weight"
    q, k = name.format("q"), name.format("k")
    rows = base[k].shape[0]
    q_delta, k_delta = tensors[q].float() - base[q].float(), tensors[k].float() - base[k].float()
    tensors[k] = (base[k].float() + q_delta[:rows]).bfloat16()
    swapped = base[q].float()
    swapped[:rows] += k_delta
    tensors[q] = swapped.bfloat16()


def test_a_right_merge_passes(merged: Path) -> None:
    report = parity.verify(merged, "demo:tickets")
    assert report.passed, report.failures
    assert report.mean_kl < 1e-3


@pytest.mark.parametrize("change", [skip_one_module, double_alpha, swap_q_and_k])
def test_a_broken_merge_fails(change: Callable[[Tensors, Tensors], None], merged: Path, tmp_path: Path) -> None:
    report = parity.verify(broken(merged, tmp_path, change), "demo:tickets")
    assert not report.passed


def test_the_base_is_not_the_tuned_model() -> None:
    report = parity.verify("demo", "demo:tickets")
    assert not report.passed
    assert report.mean_kl > report.thresholds.mean_kl
