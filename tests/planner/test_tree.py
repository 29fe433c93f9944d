"""Protects: each branch of the decision tree is taken where its condition holds, and refusals name a remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import HardwareError, InputError, SpecError
from tuneserve.planner import Plan, plan

Make = Callable[..., Path]


def choice(made: Plan) -> tuple[str, str]:
    return made.method, made.engine


@pytest.mark.parametrize(
    ("hardware", "objective", "expected"),
    [
        ("h100", "throughput", ("fp8", "vllm")),
        ("a100", "throughput", ("merged_16bit", "vllm")),
        ("rtx4090", "latency", ("fp8", "vllm")),
        ("rtx3090", "latency", ("merged_16bit", "vllm")),
        ("rtx3060", "throughput", ("int4", "vllm")),
        ("v100", "throughput", ("gguf:q8_0", "llama.cpp")),
        ("rtx3060", "memory", ("gguf:q4_k_m", "llama.cpp")),
        ("h100", "simple", ("merged_16bit", "native")),
        ("cpu-32c-256GB", "throughput", ("merged_16bit", "native")),
        ("cpu-32c-256GB", "latency", ("gguf:q4_k_m", "llama.cpp")),
        ("cpu-8c-8GB", "memory", ("gguf:q4_k_m", "llama.cpp")),
        ("mac-m4-64GB", "throughput", ("gguf:q8_0", "llama.cpp")),
        ("mac-m4-64GB", "simple", ("ollama:q4_k_m", "ollama")),
    ],
)
def test_objective_and_hardware_choose(
    llama_8b: Path, hardware: str, objective: Any, expected: tuple[str, str]
) -> None:
    made = plan(llama_8b, hardware=hardware, objective=objective, concurrency=4)
    assert choice(made) == expected


def test_a_small_model_stays_in_16_bits_where_reading_it_takes_no_time() -> None:
    assert choice(plan("demo", hardware="h100")) == ("merged_16bit", "vllm")


def test_adapters_stay_unmerged_where_they_can(make_llama: Make, make_lora: Make) -> None:
    adapter = make_lora(make_llama())
    on_gpu = plan(adapter, hardware="a100", adapters=3)
    assert choice(on_gpu) == ("lora", "vllm")
    assert not on_gpu.exports
    assert f"--adapter adapter={adapter}" in on_gpu.commands.shell[-1]
    assert choice(plan(adapter, hardware="cpu-4c-16GB", adapters=3)) == ("lora", "native")


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}])
def test_adapters_that_engines_refuse_are_merged_each(make_llama: Make, make_lora: Make, changes: Any) -> None:
    base = make_llama(tie_word_embeddings=False)
    adapter = make_lora(base)
    add_what_the_changes_need(adapter, base, changes)
    made = plan(adapter, hardware="a100", adapters=3)
    assert choice(made) == ("merged_16bit", "vllm")
    merged = next(step for step in made.steps if step.question == "Can they stay unmerged?")
    assert merged.answer.startswith("no")
    assert any("each of the others" in note for note in made.commands.notes)


def add_what_the_changes_need(adapter: Path, base: Path, changes: dict[str, Any]) -> None:
    """Give an adapter the tensors that its configuration promises."""
    import torch
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    tensors = load_file(adapter / "adapter_model.safetensors")
    base_tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if ".lora_B" in name]:
        rows = len(tensors[name])
        if changes.get("use_dora"):
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(rows)
        if changes.get("lora_bias"):
            tensors[name.replace("weight", "bias")] = torch.zeros(rows)
    if changes.get("modules_to_save"):
        tensors["base_model.model.lm_head.weight"] = base_tensors["lm_head.weight"].clone()
    save_file(tensors, adapter / "adapter_model.safetensors")


def test_tensor_parallelism_divides_the_heads(make_headers: Callable[..., Path], tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60,
        "num_attention_heads": 56, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 64000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    shapes = {f"model.layers.{layer}.mlp.up_proj.weight": (20480, 49152) for layer in range(60)}
    source = make_headers(tmp_path / "120b", config, shapes)
    made = plan(source, hardware="8xA100-80GB", concurrency=4)
    assert 56 % made.taken.tensor == 0
    assert made.taken.tensor == 2
    # Three divide neither 56 heads nor 8 key-value heads, and two do not divide three GPUs.
    assert plan(source, hardware="3xA100-80GB", concurrency=4).taken.tensor == 1


def test_the_native_engine_divides_what_one_gpu_does_not_hold(llama_8b: Path) -> None:
    made = plan(llama_8b, hardware="4xA2-16GB", objective="simple", concurrency=2)
    assert (choice(made), made.taken.tensor, made.taken.replicas) == (("merged_16bit", "native"), 2, 2)
    assert [line.partition(" ")[0] for line in made.commands.shell] == [
        "CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3",
    ]  # fmt: skip
    assert all("--engine native" in line and "--tensor-parallel 2" in line for line in made.commands.shell)
    # Beside half of the other weights, each GPU has the whole embedding.
    assert made.taken.fit is not None
    embedding = 2 * 128256 * 4096
    whole = made.taken.weights or 0
    assert made.taken.fit.weights == pytest.approx(embedding + (whole - embedding) / 2, rel=1e-3)
    assert plan(llama_8b, hardware="4xA100-80GB", objective="simple").taken.tensor == 1


def test_several_machines_are_replicas_or_a_pipeline(
    make_headers: Callable[..., Path], llama_8b: Path, tmp_path: Path
) -> None:
    replicas = plan(llama_8b, hardware="2x8xH100-80GB")
    assert (replicas.taken.replicas, replicas.taken.pipeline) == (16, 1)
    assert "--target kubernetes" in replicas.commands.shell[-1]
    config = {**json.loads((llama_8b / "config.json").read_text()), "num_hidden_layers": 100}
    shapes = {f"model.layers.{layer}.mlp.up_proj.weight": (100_000, 130_000) for layer in range(100)}
    pipeline = plan(make_headers(tmp_path / "1300b", config, shapes), hardware="4x8xH100-80GB", concurrency=1)
    assert (pipeline.taken.tensor, pipeline.taken.pipeline, pipeline.taken.replicas) == (8, 4, 1)
    assert "--target kubernetes" in pipeline.commands.shell[-1]


def test_any_family_is_planned_and_a_mixture_reads_only_its_experts(
    make_headers: Callable[..., Path], tmp_path: Path
) -> None:
    config = {
        "model_type": "unheard_of", "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 4096, "num_experts": 8,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    shapes = {
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": (20480, 20480)
        for layer in range(4)
        for expert in range(8)
    }
    made = plan(make_headers(tmp_path / "moe", config, shapes), hardware="h100", concurrency=4)
    assert choice(made) == ("fp8", "vllm")
    assert made.model.read_share(1) == pytest.approx(2 / 8)
    assert made.model.read_share(1000) == pytest.approx(1.0)
    assert "does not have the 'unheard_of' family" in (made.model.native_problem or "")


def test_too_small_a_machine_is_a_refusal_with_what_would_fit(llama_8b: Path) -> None:
    with pytest.raises(HardwareError) as error:
        plan(llama_8b, hardware="rtx4060", context=131072)
    said = str(error.value)
    assert "gguf:q2_k" in said and "a context of" in said and "a GPU of 21 GB or more (RTX-4090-24GB)" in said
    shorter = int(said.partition("a context of ")[2].split()[0].replace(",", ""))
    assert plan(llama_8b, hardware="rtx4060", context=shorter, concurrency=1).taken.sequences == 1


@pytest.mark.parametrize(
    "options",
    [
        {"context": 0},
        {"context": -5},
        {"context": 10**15},
        {"concurrency": 0},
        {"concurrency": -1},
        {"concurrency": 10**30},
        {"adapters": 0},
        {"adapters": 10**9},
        {"objective": "speed"},
        {"hardware": "potato"},
    ],
)
def test_absurd_wishes_are_refused(options: Any) -> None:
    with pytest.raises(InputError) as error:
        plan("demo", **{"hardware": "h100", **options})
    assert str(error.value).endswith(".") and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 10**9}, {"num_attention_heads": "many"}, {"hidden_size": None}]
)
def test_absurd_configurations_are_refused(make_llama: Make, changes: dict[str, Any]) -> None:
    directory = make_llama()
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "head_dim": None, **changes}))
    with pytest.raises(SpecError):
        plan(directory, hardware="h100")


def test_the_most_that_can_be_asked_is_planned_in_moments(llama_8b: Path) -> None:
    made = plan(llama_8b, hardware="1024x16xH100", concurrency=100_000, context=131072)
    assert made.taken.replicas * made.taken.tensor == 1024 * 16
    assert 50_000 <= made.taken.sequences <= 200_000
