"""The adapter's GGUF file does in llama.cpp what the adapter does in PEFT, or is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.artifacts.adapter.conftest import IDS, Bench
from tuneserve.adapters import LoraAdapter, open_adapter
from tuneserve.artifacts.adapter import write_gguf_lora
from tuneserve.errors import AdapterError, InputError

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
Make = Callable[..., Bench]


def _write(bench: Bench, adapter: Path) -> Path:
    opened = open_adapter(adapter)
    assert isinstance(opened, LoraAdapter)
    path = bench.home / "adapter.gguf"
    write_gguf_lora(opened, json.loads((bench.directory / "config.json").read_text()), path)
    return path


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}),
        ("llama", {"r": 4, "lora_alpha": 3, "target_modules": LINEAR, "use_rslora": True}),
        (
            "llama",
            {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}
            | {"rank_pattern": {"q_proj": 2, "down_proj": 6}, "alpha_pattern": {"k_proj": 1, "up_proj": 16}},
        ),
        ("llama", {"r": 4, "lora_alpha": 0, "target_modules": LINEAR}),
        ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head"]}),
        ("gemma2", {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}),
        ("qwen3moe", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}),
    ],
    ids=["plain", "rslora", "patterns", "alpha 0", "embedding and head", "gemma2", "attention of a mixture"],
)
def test_llama_cpp_applies_the_adapter_as_peft_does(
    bench: Make, llama_logits: Callable[..., torch.Tensor], architecture: str, options: dict[str, Any]
) -> None:
    made = bench(architecture)
    adapter = made.adapter(**options)
    wanted, found = made.logits(adapter), llama_logits(made.gguf, IDS, _write(made, adapter))
    without = llama_logits(made.gguf, IDS)
    # The adapter alone may differ by what the models differ by: Gemma's GELU comes from a table of 16-bit values.
    near = 1.5 * (made.logits() - without).abs().max() + 2e-4
    assert (wanted - found).abs().max() < near < 0.05 * wanted.std()
    assert options["lora_alpha"] == 0 or (found - without).abs().max() > 10 * near


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("llama", {"use_dora": True, "target_modules": LINEAR}, "lora_magnitude_vector.*gguf:TYPE"),
        ("llama", {"modules_to_save": ["lm_head"], "target_modules": LINEAR}, "lm_head.*gguf:TYPE"),
        ("llama", {"lora_bias": True, "target_modules": LINEAR}, "lora_B.bias.*gguf:TYPE"),
        ("llama", {"trainable_token_indices": [3], "target_modules": LINEAR}, "more than A and B.*gguf:TYPE"),
        ("llama", {"init_lora_weights": "olora", "target_modules": LINEAR}, "alters the base.*gguf:TYPE"),
        ("gemma2", {"target_modules": ["embed_tokens"]}, "shares its weights.*gguf:TYPE"),
        ("qwen3moe", {"target_parameters": ["mlp.experts.down_proj"], "target_modules": []}, "bare param.*gguf:TYPE"),
    ],
)
def test_what_such_a_file_cannot_hold_is_refused(
    bench: Make, architecture: str, options: dict[str, Any], message: str
) -> None:
    made = bench(architecture)
    with pytest.raises(AdapterError, match=message):
        _write(made, made.adapter(r=4, **options))


def test_an_adapter_that_is_not_finite_is_refused(bench: Make) -> None:
    made = bench()
    adapter = made.adapter(r=4, target_modules=LINEAR)
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="not finite"):
        _write(made, adapter)


@pytest.mark.parametrize(
    "changes", [{"model_type": "mamba"}, {"num_attention_heads": 7}, {"num_key_value_heads": 5}, {"model_type": "gpt2"}]
)
def test_another_base_is_refused(bench: Make, changes: dict[str, Any]) -> None:
    made = bench()
    adapter = open_adapter(made.adapter(r=4, target_modules=LINEAR))
    assert isinstance(adapter, LoraAdapter)
    config = json.loads((made.directory / "config.json").read_text()) | changes
    with pytest.raises(InputError):
        write_gguf_lora(adapter, config, made.home / "adapter.gguf")
