"""Protects: a merged model is computed in bounded blocks, rounded once, and passes through what it does not change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve.adapters import _merged
from tuneserve.errors import AdapterError, CheckpointError

Lab = Any


def lora(**fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], **fields})


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"target_modules": ["embed_tokens", "down_proj"], "use_dora": True}),
        ("llama", {"trainable_token_indices": [0, 17, 39], "lora_bias": True}),
        ("llama", {"init_lora_weights": "pissa"}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
        ("gpt_oss", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ],
    ids=str,
)
def test_blocks_of_any_size_give_the_same(
    lab: Lab, family: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = lab.base(family)
    adapter = lab.adapter(base, lora(**fields))
    whole = lab.merge(base, adapter, dtype="float32")
    expected = {name: whole.read(name) for name in whole.tensors}
    monkeypatch.setattr(_merged, "_BLOCK_ELEMENTS", 100)
    for name, tensor in expected.items():
        # Matrix products of other sizes add in another order.
        assert torch.allclose(whole.read(name), tensor, rtol=1e-5, atol=1e-6), name


def test_a_float32_base_becomes_bfloat16(lab: Lab) -> None:
    base = lab.base("llama")
    adapter = lab.adapter(base, lora())
    merged, exact = lab.merge(base, adapter), lab.merge(base, adapter, dtype="float32")
    assert {spec.dtype for spec in merged.tensors.values()} == {"BF16"}
    assert merged.config["dtype"] == "bfloat16"
    for name in merged.tensors:
        assert torch.equal(merged.read(name), exact.read(name).bfloat16())


def test_a_16_bit_base_keeps_each_dtype_unless_told(lab: Lab) -> None:
    base = lab.base("llama", torch.float16)
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, path, metadata={"format": "pt"})
    adapter = lab.adapter(base, lora())
    kept, told = lab.merge(base, adapter), lab.merge(base, adapter, dtype="bfloat16")
    assert kept.tensors["model.norm.weight"].dtype == "F32"
    assert kept.tensors["model.embed_tokens.weight"].dtype == "F16"
    assert {spec.dtype for spec in told.tensors.values()} == {"BF16"}
    assert told.read("model.norm.weight").dtype == torch.bfloat16
    assert torch.equal(kept.read("model.embed_tokens.weight"), tensors["model.embed_tokens.weight"])


def test_a_whole_model_passes_through(lab: Lab) -> None:
    base = lab.base("qwen3_moe", torch.bfloat16)
    merged = lab.merge(base)
    assert merged.changed == frozenset()
    assert merged.config == json.loads((base / "config.json").read_text())
    for name, tensor in load_file(base / "model.safetensors").items():
        assert torch.equal(merged.read(name), tensor)


def test_what_float16_cannot_hold_is_refused(lab: Lab) -> None:
    base = lab.base("llama")
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"model\.norm\.weight is not finite once merged in F16.*bfloat16"):
        lab.merge(base, dtype="float16").read("model.norm.weight")
    assert torch.isfinite(lab.merge(base).read("model.norm.weight")).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}], ids=str)
def test_what_is_not_finite_is_refused(lab: Lab, fields: dict[str, Any], value: float) -> None:
    base = lab.base("llama")
    adapter = lab.adapter(base, lora(**fields))
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        tensor[:] = tensor if "norm" in name and value == 1e38 else value
    save_file(tensors, path, metadata={"format": "pt"})
    merged = lab.merge(base, adapter)
    names = ["model.norm.weight"] if fields.get("modules_to_save") and value != 1e38 else []
    for name in ["model.layers.0.self_attn.q_proj.weight", *names]:
        with pytest.raises(AdapterError, match="not finite"):
            merged.read(name)


def test_a_base_with_an_adapter_left_inside_is_refused(lab: Lab) -> None:
    base = lab.base("llama")
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 2)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="unmerged adapter"):
        lab.merge(base)


def rename(base: Path, old: str, new: str) -> Path:
    path = base / "model.safetensors"
    tensors = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return base


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("gpt2", "transformer.", ""),
        ("llama", "model.", "language_model.model."),
        ("llama", "model.", "model.language_model."),
    ],
)
def test_checkpoints_with_other_prefixes(lab: Lab, family: str, old: str, new: str) -> None:
    base = lab.base(family, tie_word_embeddings=True)
    embedding, linear = ("wte", "c_attn") if family == "gpt2" else ("embed_tokens", "q_proj")
    adapter = lab.adapter(base, lora(target_modules=[linear, embedding]))
    before = lab.merge(base, adapter, dtype="float32")
    expected = {name: before.read(name) for name in before.tensors}
    after = lab.merge(rename(base, old, new), adapter, dtype="float32")
    for name, tensor in expected.items():
        other = new + name.removeprefix(old)
        if name.startswith("lm_head"):
            other = "language_model.lm_head.weight" if new.startswith("language_model.") else name
        assert torch.equal(after.read(other), tensor), name
    assert len(after.tensors) == len(expected)
