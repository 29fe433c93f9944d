"""Protects: the planner's sizes are those of the exporter and of the files it writes, to the byte, without torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.artifacts import export, plan_export
from tuneserve.artifacts._linear import linear_weights
from tuneserve.checkpoint import TensorSpec
from tuneserve.planner._linear import linear_names
from tuneserve.planner._model import plan_model
from tuneserve.planner._weights import Scales
from tuneserve.sources import resolve

Make = Callable[..., Path]
DIRECTORIES = ("merged_16bit", "merged_4bit", "fp8", "int8", "w8a16", "int4", "mxfp4", "nvfp4a16")
GGUF = ("gguf:bf16", "gguf:q8_0", "gguf:q4_k_m", "gguf:q2_k")
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "smollm3", "gpt2",
    "gpt_neox", "starcoder2", "olmo2", "cohere2", "glm4", "qwen2_moe", "qwen3_moe", "mixtral", "deepseek_v3",
    "qwen3_next", "lfm2", "falcon_h1",
)  # fmt: skip


@pytest.mark.parametrize("method", [*DIRECTORIES, *GGUF])
def test_sizes_of_the_demo_are_the_exporters(method: str) -> None:
    weighed = Scales(plan_model(resolve("demo:tickets"))).weigh(method)
    assert weighed.nbytes == plan_export("demo:tickets", method=method).output_bytes[method], weighed.problem


def test_sizes_of_eight_billion_parameters_are_the_exporters(llama_8b: Path) -> None:
    scales = Scales(plan_model(resolve(llama_8b)))
    methods = ["merged_16bit", "fp8", "fp8_block", "int4", "merged_4bit", "gguf:q8_0", "gguf:q4_k_m"]
    planned = plan_export(llama_8b, method=methods).output_bytes
    assert {method: scales.weigh(method).nbytes for method in methods} == planned
    assert planned["merged_16bit"] > 4 * planned["gguf:q4_k_m"] * 0.75


def test_sizes_are_those_of_the_files(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    base = make_llama(hidden_size=128, intermediate_size=256, head_dim=32, tie_word_embeddings=False)
    adapter = make_lora(base)
    methods = ["merged_16bit", "fp8", "int4", "merged_4bit"]
    export(adapter, tmp_path / "out", method=methods, verify=False)
    scales = Scales(plan_model(resolve(adapter)))
    for method in methods:
        written = sum(path.stat().st_size for path in (tmp_path / "out" / method).glob("*.safetensors"))
        assert scales.weigh(method).nbytes == written


def test_a_method_that_cannot_be_made_says_why(make_llama: Make) -> None:
    scales = Scales(plan_model(resolve(make_llama())))
    assert "tokenizer" in (scales.weigh("gguf:q8_0").problem or "")
    assert "choose fp8 or int8" in (scales.weigh("int4").problem or "")


@pytest.mark.parametrize("family", FAMILIES)
def test_names_tell_the_linear_weights_that_transformers_has(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config: dict[str, Any] = {**SMALL, "model_type": family}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    specs = {name: TensorSpec(name, "BF16", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    known, found = linear_weights(specs, config), linear_names(specs.values(), family)
    assert {spec.name for spec in found.weights} == {*known.modules, *known.experts, *known.transposed}
    assert {spec.name for spec in found.transposed} == set(known.transposed)
    assert known.modules or known.transposed


def test_single_experts_are_quantised_and_their_routers_are_not() -> None:
    names = {
        "model.layers.0.mlp.experts.3.up_proj.weight": True,
        "model.layers.0.block_sparse_moe.experts.1.w1.weight": True,
        "model.layers.0.mlp.gate.weight": False,
        "model.layers.0.block_sparse_moe.gate.weight": False,
        "model.visual.blocks.0.attn.qkv.weight": False,
        "model.embed_tokens.weight": False,
        "lm_head.weight": False,
    }
    found = linear_names([TensorSpec(name, "BF16", (8, 8)) for name in names], "qwen3_moe")
    assert {spec.name for spec in found.weights} == {name for name, linear in names.items() if linear}


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys\nfrom tuneserve.planner import explain, plan\n"
        "for objective in ('throughput', 'memory', 'simple'):\n"
        "    explain(plan('demo:tickets', objective=objective, hardware='rtx4090'))\n"
        "plan('demo', hardware='auto')\n"
        "print(*{'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
