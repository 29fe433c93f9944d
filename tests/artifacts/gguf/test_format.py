"""Protects: llama.cpp computes from the file what Transformers computes from the checkpoint, whatever the family."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGUFReader

from tuneserve.artifacts.gguf import GgufFormat
from tuneserve.checkpoint import TensorSpec, open_checkpoint
from tuneserve.errors import CheckpointError, SpecError, TextError
from tuneserve.sources import read_config
from tuneserve.spec import GGUF_ARCHITECTURES

Make = Callable[..., Any]
IDS = torch.randint(2, 392, (24,), generator=torch.Generator().manual_seed(3)).tolist()
# llama.cpp looks GELU up in a table of float16.
GELU = {"gemma", "gemma2", "gemma3_text", "gpt2"}
FACTORS = [1.0 + 0.3 * number for number in range(8)]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("family", GGUF_ARCHITECTURES)
def test_each_family_computes_the_same(
    family: str, make_family: Make, make_gguf: Make, llama_cpp_file: Make, tmp_path: Path
) -> None:
    reference = logits(make_family(tmp_path, family), IDS)
    ours = llama_cpp_file(make_gguf(tmp_path, tmp_path, "f32")).logits(IDS)
    assert (ours - reference).abs().max() < (5e-3 if family in GELU else 2e-5) * reference.std()


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("llama", {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}),
        ("llama", {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
        ("qwen2", YARN),
        ("qwen2", {**YARN, "attention_factor": 1.3}),
        ("smollm3", {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5}),
        (
            "gemma3_text",
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
    ],
)
def test_each_rope_scaling_computes_the_same(
    family: str, rope: dict[str, Any], make_family: Make, make_gguf: Make, llama_cpp_file: Make, tmp_path: Path
) -> None:
    ids = (IDS * 5)[:100]
    reference = logits(make_family(tmp_path, family, rope_parameters=rope), ids)
    ours = llama_cpp_file(make_gguf(tmp_path, tmp_path, "f32")).logits(ids)
    assert (ours - reference).abs().max() < (5e-3 if family in GELU else 2e-5) * reference.std()


@pytest.mark.parametrize(("part", "factors"), [(1.0, FACTORS), (0.5, FACTORS[:4])])
def test_longrope_computes_the_same_for_short_and_long_texts(
    part: float, factors: list[float], make_family: Make, make_gguf: Make, llama_cpp_file: Make, tmp_path: Path
) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": part, "factor": 2.0,
        "original_max_position_embeddings": 512, "short_factor": factors, "long_factor": [2 * f for f in factors],
    }  # fmt: skip
    model = make_family(
        tmp_path, "phi3", rope_parameters=rope, max_position_embeddings=1024, original_max_position_embeddings=512
    )
    made = llama_cpp_file(make_gguf(tmp_path, tmp_path, "f32"))
    for ids, context in ((IDS, 256), (IDS * 22, 1024)):
        assert (made.logits(ids, context) - logits(model, ids)).abs().max() < 1e-4


def test_the_demo_model_answers_the_same_from_q8_0(
    demo_base: Path, make_gguf: Make, llama_cpp_file: Make, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = llama_cpp_file(make_gguf(demo_base, tmp_path, "q8_0", name="org/demo model"))
    assert (tmp_path / "demo-model-Q8_0.gguf").is_file()
    ids = AutoTokenizer.from_pretrained(demo_base)("<|im_start|>user\nWhat is the capital of France?").input_ids
    assert made.encode("<|im_start|>user\nWhat is the capital of France?") == ids
    reference = logits(AutoModelForCausalLM.from_pretrained(demo_base, dtype=torch.float32), ids).log_softmax(-1)
    ours = made.logits(ids).log_softmax(-1)
    # Eight bits a weight and eight bits an activation.
    assert (reference.exp() * (reference - ours)).sum(-1).max() < 0.05


def test_every_tensor_dequantises_to_its_weight(make_family: Make, make_gguf: Make, tmp_path: Path) -> None:
    make_family(tmp_path, "qwen3")
    weights = open_checkpoint(tmp_path)
    reader = GGUFReader(make_gguf(tmp_path, tmp_path, "q8_0"))
    by_name = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    assert len(by_name) == len(weights.tensors)
    for ours, theirs in (("token_embd", "model.embed_tokens"), ("blk.2.attn_q", "model.layers.2.self_attn.q_proj")):
        expected = weights.read(f"{theirs}.weight").float()
        assert (torch.from_numpy(by_name[f"{ours}.weight"]) - expected).abs().max() < expected.abs().max() / 127
    assert {t.tensor_type.name for t in reader.tensors if "norm" in t.name} == {"F32"}


def test_fused_and_separate_experts_give_the_same_file(make_family: Make, make_gguf: Make, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    separate, fused = tmp_path / "separate", tmp_path / "fused"
    make_family(separate, "qwen3_moe")
    make_family(fused, "qwen3_moe")
    weights = open_checkpoint(separate)
    stacked = {name: weights.read(name) for name in weights.tensors if ".experts." not in name}
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack([weights.read(f"{prefix}{expert}.{kind}_proj.weight") for expert in range(4)])
            for kind in ("gate", "up", "down")
        )
        stacked |= {f"{prefix}gate_up_proj": torch.cat([gate, up], dim=1), f"{prefix}down_proj": down}
    save_file(stacked, fused / "model.safetensors", metadata={"format": "pt"})
    one, other = (GGUFReader(make_gguf(home, home, "q8_0")) for home in (separate, fused))
    assert {t.name: t.data.tobytes() for t in one.tensors} == {t.name: t.data.tobytes() for t in other.tensors}


def test_a_tied_models_stored_head_is_left_out(make_family: Make, tmp_path: Path) -> None:
    make_family(tmp_path, "llama", tie_word_embeddings=True)
    specs = dict(open_checkpoint(tmp_path).tensors)
    head = TensorSpec("lm_head.weight", "BF16", (400, 64))
    made = GgufFormat({**specs, "lm_head.weight": head}, read_config(tmp_path / "config.json"), tmp_path, "m", "bf16")
    assert made.pieces("lm_head.weight") == ()
    assert made.encode("lm_head.weight", torch.zeros(400, 64)) == ()


def test_the_wrapper_of_a_multimodal_model_gives_its_text_part(make_family: Make, tmp_path: Path) -> None:
    make_family(tmp_path, "gemma3_text")
    text = read_config(tmp_path / "config.json")
    specs = {
        name.replace("model.", "language_model.model.", 1): spec
        for name, spec in open_checkpoint(tmp_path).tensors.items()
    }
    tower = TensorSpec("vision_tower.vision_model.embeddings.patch_embedding.weight", "BF16", (8, 3, 2, 2))
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    made = GgufFormat({**specs, tower.name: tower}, config, tmp_path, "m", "f16")
    assert made.pieces(tower.name) == ()
    plain = GgufFormat(dict(open_checkpoint(tmp_path).tensors), text, tmp_path, "m", "f16")
    assert made.files == plain.files


@pytest.mark.parametrize(
    ("family", "changes", "error"),
    [
        ("llama", {"model_type": "mamba"}, "cannot be written as GGUF"),
        ("llama", {"model_type": ["llama"]}, "should be a string"),
        ("llama", {"num_attention_heads": 0}, "whole number"),
        ("llama", {"num_hidden_layers": 10**9}, "whole number"),
        ("llama", {"num_hidden_layers": 600}, "llama.cpp cannot hold"),
        ("llama", {"num_key_value_heads": 3}, "llama.cpp cannot hold"),
        ("llama", {"num_attention_heads": 8}, "heads of"),
        ("llama", {"num_hidden_layers": 2}, "equal layers"),
        ("llama", {"num_hidden_layers": 4}, "equal layers"),
        ("llama", {"vocab_size": 500}, "400 rows"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"rms_norm_eps": float("nan")}, "positive number"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ("llama", {"rope_parameters": [1]}, "object"),
        ("gemma2", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
        ("gemma2", {"tie_word_embeddings": False}, "no head"),
        ("gemma3_text", {"layer_types": ["sliding_attention"] * 10**6}, "layer_types"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}}, "factors"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"num_experts": 3, "num_local_experts": 3}, "an expert that config.json does not have"),
        ("qwen3_moe", {"num_experts": 5, "num_local_experts": 5}, "not all 5 experts"),
        ("smollm3", {"no_rope_layers": [1] * 5}, "no_rope_layers"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_by_name(
    family: str, changes: dict[str, Any], error: str, make_family: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.getbasetemp() / f"refused-{family}"
    if not home.exists():
        make_family(home, family)
    specs, config = open_checkpoint(home).tensors, {**read_config(home / "config.json"), **changes}
    with pytest.raises((SpecError, CheckpointError), match=error) as refusal:
        GgufFormat(specs, config, home, "m", "f16")
    assert len(str(refusal.value)) < 400


def test_a_bias_that_llama_cpp_would_not_add_is_refused(make_family: Make, tmp_path: Path) -> None:
    make_family(tmp_path, "qwen3", attention_bias=True)
    with pytest.raises(SpecError, match=r"bias blk\.0\.attn_"):
        GgufFormat(open_checkpoint(tmp_path).tensors, read_config(tmp_path / "config.json"), tmp_path, "m", "f16")


def test_a_model_without_a_tokenizer_is_refused(make_family: Make, tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    with pytest.raises(TextError, match="holds the tokenizer"):
        GgufFormat(open_checkpoint(tmp_path).tensors, read_config(tmp_path / "config.json"), None, "m", "f16")


def test_windows_that_llama_cpp_lacks_end_the_context(make_family: Make, make_gguf: Make, tmp_path: Path) -> None:
    make_family(tmp_path, "mistral", sliding_window=50)
    fields = GGUFReader(make_gguf(tmp_path, tmp_path, "f16")).fields
    assert fields["llama.context_length"].contents() == 50


@pytest.mark.parametrize("name", ["../../etc/x", "a b/c:d", "..", "", "\0", "x/"])
def test_the_file_stays_in_its_directory(
    name: str, make_family: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.getbasetemp() / "named"
    if not home.exists():
        make_family(home, "llama")
    made = GgufFormat(open_checkpoint(home).tensors, read_config(home / "config.json"), home, name, "f16")
    (file,) = made.files
    assert Path(file).name == file
    assert file.endswith("-F16.gguf")
    assert json.dumps(file).isascii()
