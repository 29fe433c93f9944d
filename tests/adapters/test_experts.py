"""Protects: deltas of experts reach the tensors of every layout in which checkpoints keep experts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Lab = Any
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def lora(**fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], **fields})


def is_fused(base: Path) -> bool:
    return any(name.endswith("experts.gate_up_proj") for name in load_file(base / "model.safetensors"))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe"])
@pytest.mark.parametrize("which", [[0, 1], [0], [1]], ids=["both", "gate_up", "down"])
def test_parameters_of_all_experts(lab: Lab, family: str, which: list[int]) -> None:
    base = lab.base(family)
    assert is_fused(base) is (family == "gpt_oss")
    parameters = [PARAMETERS[index].removeprefix("mlp.") for index in which]
    config = lora(target_parameters=parameters, rank_pattern={"gate_up_proj": 2}, alpha_pattern={"down_proj": 7})
    lab.check(base, lab.adapter(base, config))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_names_of_projections_mean_the_experts(lab: Lab, family: str) -> None:
    """PEFT turns them into target_parameters of twice the rank."""
    base = lab.base(family)
    names = ["w1", "w2", "w3", "gate"] if family == "mixtral" else ["gate_proj", "up_proj", "down_proj", "gate"]
    lab.check(base, lab.adapter(base, lora(target_modules=["v_proj", *names])))


def test_biases_and_weights_of_gpt_oss(lab: Lab) -> None:
    base = lab.base("gpt_oss")
    parameters = ["experts.gate_up_proj", "experts.gate_up_proj_bias", "experts.down_proj", "experts.down_proj_bias"]
    lab.check(base, lab.adapter(base, lora(target_parameters=parameters)))


def test_experts_stored_the_other_way_round(lab: Lab) -> None:
    """Some checkpoints hold (experts, in, out) where the model has (experts, out, in)."""
    base = lab.base("qwen3_moe")
    adapter = lab.adapter(base, lora(target_parameters=PARAMETERS))
    fuse(base)
    expected = lab.merge(base, adapter, dtype="float32")
    names = [name for name in expected.changed if ".experts." in name]
    tensors = {name: expected.read(name) for name in names}
    path = base / "model.safetensors"
    stored = load_file(path)
    save_file({name: t.mT.contiguous() if name in names else t for name, t in stored.items()}, path)
    turned = lab.merge(base, adapter, dtype="float32")
    assert len(names) == 4
    for name in names:
        assert torch.allclose(turned.read(name), tensors[name].mT, rtol=1e-5, atol=1e-6), name


def test_layers_for_predicting_several_tokens_are_no_targets(lab: Lab) -> None:
    base = lab.base("qwen3_moe")
    adapter = lab.adapter(base, lora())
    path = base / "model.safetensors"
    tensors = load_file(path)
    extra = {"mtp.layers.0.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj.weight"}
    save_file(tensors | {name: torch.ones(16, 16) for name in extra}, path)
    assert extra.isdisjoint(lab.merge(base, adapter).changed)


def test_the_router_as_a_parameter(lab: Lab) -> None:
    base = lab.base("qwen3_moe")
    lab.check(base, lab.adapter(base, lora(target_parameters=["mlp.gate.weight"], alpha_pattern={"gate.weight": 9})))


def test_experts_that_are_saved_as_one_tensor(lab: Lab) -> None:
    base = lab.base("qwen3_moe")
    adapter = lab.adapter(base, lora(target_parameters=PARAMETERS))
    fuse(base)
    lab.check(base, adapter)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_adapters_of_single_experts_from_older_versions(lab: Lab, family: str, fused: bool) -> None:
    base = lab.base(family)
    adapter = single_experts(lab, base, family)
    if fused:
        fuse(base)
    merged = lab.check(base, adapter)
    assert len(merged.changed) == (6 if fused else 2 + 2 * 3 * 3)


def single_experts(lab: Lab, base: Path, family: str) -> Path:
    """Write an adapter as PEFT and Transformers 4 did: a delta for each expert's layer."""
    directory: Path = lab.adapter(base, lora())
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(1)
    where, names = ("block_sparse_moe", "w1 w3 w2") if family == "mixtral" else ("mlp", "gate_proj up_proj down_proj")
    inner = 24 if family == "mixtral" else 12
    for layer in range(2):
        for expert in range(3):
            for index, name in enumerate(names.split()):
                inputs, outputs = (inner, 16) if index == 2 else (16, inner)
                module = f"base_model.model.model.layers.{layer}.{where}.experts.{expert}.{name}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(3, inputs, generator=generator) * 0.2
                tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, 3, generator=generator) * 0.2
    save_file(tensors, path, metadata={"format": "pt"})
    return lab.change(directory, target_modules=["q_proj", *names.split()])  # type: ignore[no-any-return]


def fuse(base: Path) -> None:
    """Store the experts of each layer as the two tensors that Transformers' modules have."""
    path = base / "model.safetensors"
    tensors = load_file(path)
    for layer in range(2):
        where = "block_sparse_moe" if any("block_sparse_moe" in name for name in tensors) else "mlp"
        prefix = f"model.layers.{layer}.{where}.experts"
        names = ("w1", "w3", "w2") if where == "block_sparse_moe" else ("gate_proj", "up_proj", "down_proj")
        gate, up, down = (
            torch.stack([tensors.pop(f"{prefix}.{expert}.{name}.weight") for expert in range(3)]) for name in names
        )
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = down.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
