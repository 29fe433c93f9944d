"""Protects: each tensor of a checkpoint gets the name that llama.cpp reads, and finds its way back."""

import gguf
import pytest

from tuneserve.errors import SpecError
from tuneserve.spec import GGUF_ARCHITECTURES, GgufPart, gguf_parts, hf_name

LAYER = {
    "dense": ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
              "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "normed": ("self_attn.q_norm", "self_attn.k_norm"),
    "sandwich": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "experts": ("mlp.gate", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    "shared": ("mlp.shared_expert.gate_proj", "mlp.shared_expert_gate"),
    "mixtral": ("block_sparse_moe.gate", "block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w2",
                "block_sparse_moe.experts.{}.w3"),
    "fused": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
}  # fmt: skip
MODULES = {
    "llama": ("dense",), "mistral": ("dense",), "mixtral": ("mixtral",), "smollm3": ("dense",), "granite": ("dense",),
    "qwen2": ("dense",), "qwen3": ("dense", "normed"), "qwen2_moe": ("experts", "shared"),
    "qwen3_moe": ("normed", "experts"), "gemma": ("dense",), "gemma2": ("dense", "sandwich"),
    "gemma3_text": ("dense", "sandwich", "normed"), "phi3": ("fused",),
}  # fmt: skip


def oracle(family: str, module: str) -> str:
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == GGUF_ARCHITECTURES[family])
    name = gguf.get_tensor_name_map(architecture, 12).get_name(module)
    assert name is not None, module
    return str(name)


@pytest.mark.parametrize("family", MODULES)
def test_names_are_those_of_the_gguf_package(family: str) -> None:
    for group in MODULES[family]:
        for module in LAYER[group]:
            ours = gguf_parts(family, f"model.layers.11.{module.format(7)}.weight")
            stacked = module.replace("{}.", "")
            if "block_sparse_moe.experts" in stacked:
                theirs = oracle(family, f"layers.11.{stacked.replace('block_sparse_moe', 'feed_forward')}")
            else:
                theirs = oracle(family, f"model.layers.11.{stacked}")
            assert [part.name for part in ours] == [f"{theirs}.weight"]
            assert ours[0].expert == (7 if "{}" in module else None)
            back = hf_name(family, ours[0].name)
            assert back == f"model.layers.11.{module.format('{expert}')}.weight"
    for outside in ("model.embed_tokens", "model.norm", "lm_head"):
        (part,) = gguf_parts(family, f"{outside}.weight")
        assert hf_name(family, part.name) == f"{outside}.weight"


def test_gpt2_and_gpt_oss_have_names_of_their_own() -> None:
    assert gguf_parts("gpt2", "h.3.attn.c_attn.weight") == (GgufPart("blk.3.attn_qkv.weight", transposed=True),)
    assert gguf_parts("gpt2", "transformer.wpe.weight") == (GgufPart("position_embd.weight"),)
    assert gguf_parts("gpt2", "h.3.attn.bias") == ()
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    assert gguf_parts("gpt_oss", experts) == (
        GgufPart("blk.0.ffn_gate_exps.weight", rows="even", transposed=True),
        GgufPart("blk.0.ffn_up_exps.weight", rows="odd", transposed=True),
    )
    assert {hf_name("gpt_oss", part.name) for part in gguf_parts("gpt_oss", experts)} == {experts}


def test_only_some_families_interleave_heads_or_shift_norms() -> None:
    (q,), (k,) = (gguf_parts("llama", f"model.layers.0.self_attn.{name}_proj.bias") for name in "qk")
    assert (q.heads, k.heads) == ("q", "kv")
    assert gguf_parts("qwen2", "model.layers.0.self_attn.q_proj.weight")[0].heads is None
    assert all(
        gguf_parts("gemma2", f"model.{name}.weight")[0].plus_one for name in ("norm", "layers.0.input_layernorm")
    )
    assert not gguf_parts("llama", "model.norm.weight")[0].plus_one


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_prefixes_of_wrappers_are_left_out(prefix: str) -> None:
    assert gguf_parts("gemma3_text", f"{prefix}layers.0.mlp.up_proj.weight") == (GgufPart("blk.0.ffn_up.weight"),)
    assert gguf_parts("gemma3_text", "vision_tower.encoder.weight") == ()


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.up_proj.qweight", "x", "", "model.layers.99999.mlp.up_proj.weight"]
)
def test_unknown_tensors_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="has no place"):
        gguf_parts("llama", name)
    with pytest.raises(SpecError, match="has no place"):
        hf_name("llama", name)


def test_what_the_configuration_determines_comes_from_no_tensor() -> None:
    assert hf_name("llama", "rope_freqs.weight") is None
