"""The normalised adapter is the same adapter: PEFT loads it to equal logits, and its keys are PEFT's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.artifacts.adapter.conftest import Bench
from tuneserve.adapters import LoraAdapter, open_adapter
from tuneserve.artifacts.adapter import write_lora
from tuneserve.errors import AdapterError

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, "down_proj": 6},
    "alpha_pattern": {"k_proj": 1, "up_proj": 16},
}
Make = Callable[..., Bench]


def _write(adapter: Path, *files: Path) -> Path:
    opened = open_adapter(adapter)
    assert isinstance(opened, LoraAdapter)
    target = adapter.parent / "normalised"
    target.mkdir()
    write_lora(opened, target, files)
    return target


def _config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return config


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        PATTERNS,
        {**PATTERNS, "use_rslora": True},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_peft_loads_it_to_equal_logits(bench: Make, options: dict[str, Any]) -> None:
    made = bench()
    adapter = made.adapter(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=LINEAR, **options)
    written = _write(adapter)
    assert made.logits(written).allclose(made.logits(adapter), atol=1e-5)
    config = _config(written)
    assert not {"lora_dropout", "peft_version", "loftq_config", "rank_pattern", "alpha_pattern"} & config.keys()
    assert config["base_model_name_or_path"] == str(made.directory)


def test_what_vllm_needs_is_one_rank_and_one_alpha(bench: Make) -> None:
    written = _write(bench().adapter(r=4, lora_alpha=8, target_modules=LINEAR, **PATTERNS))
    tensors = load_file(written / "adapter_model.safetensors")
    assert {t.shape[0 if "lora_A" in name else 1] for name, t in tensors.items()} == {6}
    config = _config(written)
    assert (config["r"], config["lora_alpha"], config["bias"]) == (6, 6, "none")


def test_patterns_with_more_than_two_factors_are_refused(bench: Make) -> None:
    adapter = bench().adapter(r=4, target_modules=LINEAR, use_dora=True, **PATTERNS)
    with pytest.raises(AdapterError, match=r"one rank; export merged_16bit"):
        _write(adapter)


def test_names_lose_the_adapters_own_and_dtypes_become_one(bench: Make) -> None:
    made = bench()
    adapter = made.adapter(r=4, lora_alpha=8, target_modules=LINEAR)
    original = load_file(adapter / "adapter_model.safetensors")
    named = {name.replace(".weight", ".mine.weight"): t for name, t in original.items()}
    first = next(iter(named))
    named[first] = named[first].bfloat16()
    save_file(named, adapter / "adapter_model.safetensors")
    tokenizer = adapter / "tokenizer.json"
    tokenizer.write_text("{}")
    written = _write(adapter, tokenizer)
    tensors = load_file(written / "adapter_model.safetensors")
    assert tensors.keys() == original.keys()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert (written / "tokenizer.json").read_text() == "{}"


def test_sixteen_bits_stay_sixteen_bits_to_the_byte(bench: Make) -> None:
    adapter = bench().adapter(r=4, target_modules=LINEAR)
    tensors = {name: t.bfloat16() for name, t in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    written = load_file(_write(adapter) / "adapter_model.safetensors")
    assert all(written[name].equal(tensors[name]) and written[name].dtype == torch.bfloat16 for name in tensors)
