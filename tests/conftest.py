"""Small models and adapters made from a seed, and the demo model."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Triton decides at its first import, which many libraries make, whether its kernels run in the interpreter.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from safetensors.torch import save_file

Config = dict[str, Any]

TINY_LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(autouse=True)
def _cpu_threads() -> None:
    torch.set_num_threads(2)


def llama_tensors(config: Config, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random weights with the names and shapes of a Llama checkpoint."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.1).to(dtype)

    hidden, inter, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    tensors = {"model.embed_tokens.weight": random(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inter, hidden),
            "mlp.up_proj": (inter, hidden),
            "mlp.down_proj": (hidden, inter),
        }
        tensors |= {f"{prefix}{name}.weight": random(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = 1 + random(hidden)
    tensors["model.norm.weight"] = 1 + random(hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = random(config["vocab_size"], hidden)
    return tensors


def write_llama(
    directory: Path, *, dtype: torch.dtype = torch.bfloat16, shards: int = 1, seed: int = 0, **changes: Any
) -> Path:
    """Write a tiny random Llama checkpoint; ``changes`` go into its config."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {**TINY_LLAMA, "dtype": str(dtype).removeprefix("torch."), **changes}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(config, dtype, seed)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map = {}
    names = list(tensors)
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[index::shards]
        save_file({name: tensors[name] for name in mine}, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(mine, file))
    index_json = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_json))
    return directory


def write_lora(
    directory: Path,
    base: Path,
    *,
    rank: int = 4,
    modules: tuple[str, ...] = LINEARS,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.1,
    seed: int = 1,
    **changes: Any,
) -> Path:
    """Write a random LoRA adapter for the checkpoint in ``base``; ``changes`` go into its config."""
    from tuneserve.checkpoint import open_checkpoint

    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, header in open_checkpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in modules:
            out_features, in_features = header.shape
            a, b = (
                torch.randn(rank, in_features, generator=generator),
                torch.randn(out_features, rank, generator=generator),
            )
            tensors[f"base_model.model.{module}.lora_A.weight"] = (a * scale).to(dtype)
            tensors[f"base_model.model.{module}.lora_B.weight"] = (b * scale).to(dtype)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "inference_mode": True,
        **changes,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def make_llama(tmp_path: Path) -> Callable[..., Path]:
    """Return :func:`write_llama` into a new directory per name."""

    def make(name: str = "base", **options: Any) -> Path:
        return write_llama(tmp_path / name, **options)

    return make


@pytest.fixture
def make_lora(tmp_path: Path) -> Callable[..., Path]:
    """Return :func:`write_lora` into a new directory per name."""

    def make(base: Path, name: str = "adapter", **options: Any) -> Path:
        return write_lora(tmp_path / name, base, **options)

    return make


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Return :func:`write_llama`."""
    return write_llama


@pytest.fixture(scope="session")
def write_adapter() -> Callable[..., Path]:
    """Return :func:`write_lora`."""
    return write_lora


@pytest.fixture(scope="session")
def demo_base() -> Path:
    """Return the built-in base model; the first use on a machine downloads it."""
    from tuneserve.sources import resolve

    return resolve("demo").model_dir


GGUF_LAYERS, GGUF_HIDDEN, GGUF_VOCABULARY = 3, 64, 300
# Per architecture: metadata and shapes (outermost first) of tensors beside the common; an empty one leaves it out.
GGUF_MODELS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "llama": (
        {"rope.freq_base": 500000.0},
        {
            "output": (GGUF_VOCABULARY, 64), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64),
            "attn_output": (64, 64), "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96),
        },
    ),
    "qwen3moe": (
        {
            "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
            "attention.key_length": 32, "attention.value_length": 32,
        },
        {
            "attn_q": (128, 64), "attn_k": (64, 64), "attn_v": (64, 64), "attn_output": (64, 128),
            "attn_q_norm": (32,), "attn_k_norm": (32,), "ffn_gate_inp": (4, 64),
            "ffn_gate_exps": (4, 32, 64), "ffn_up_exps": (4, 32, 64), "ffn_down_exps": (4, 64, 32),
        },
    ),
    "gemma2": (
        {"attention.sliding_window": 4, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        {
            "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
            "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96),
            "post_attention_norm": (64,), "post_ffw_norm": (64,),
        },
    ),
    "gpt2": (
        {"attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": 4},
        {
            "position_embd": (128, 64), "output_norm.bias": (64,), "attn_norm.bias": (64,), "ffn_norm.bias": (64,),
            "attn_qkv": (192, 64), "attn_qkv.bias": (192,), "attn_output": (64, 64), "attn_output.bias": (64,),
            "ffn_up": (96, 64), "ffn_up.bias": (96,), "ffn_down": (64, 96), "ffn_down.bias": (64,),
        },
    ),
    "gpt-oss": (
        {
            "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32, "attention.sliding_window": 4,
            "attention.key_length": 16, "attention.value_length": 16, "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 16,
        },
        {
            "output": (GGUF_VOCABULARY, 64), "ffn_norm": (), "post_attention_norm": (64,), "attn_sinks": (4,),
            "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
            "attn_q.bias": (64,), "attn_k.bias": (32,), "attn_v.bias": (32,), "attn_output.bias": (64,),
            "ffn_gate_inp": (4, 64), "ffn_gate_inp.bias": (4,),
            "ffn_gate_exps": (4, 32, 64), "ffn_up_exps": (4, 32, 64), "ffn_down_exps": (4, 64, 32),
            "ffn_gate_exps.bias": (4, 32), "ffn_up_exps.bias": (4, 32), "ffn_down_exps.bias": (4, 64),
        },
    ),
}  # fmt: skip


def write_gguf(path: Path, architecture: str = "llama", *, kind: str = "F32", seed: int = 0, **metadata: Any) -> Path:
    """Write a random model as a GGUF file with the gguf package, in llama.cpp's own layout, with a byte tokenizer."""
    import gguf
    import numpy as np

    more, shapes = GGUF_MODELS[architecture]
    writer = gguf.GGUFWriter(path, architecture)
    values: dict[str, Any] = {
        "context_length": 128,
        "embedding_length": GGUF_HIDDEN,
        "block_count": GGUF_LAYERS,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        **more,
    }
    alphabet = [chr(code) for code in gguf_byte_alphabet()]
    tokens = [*alphabet, "he", "ll", "<|im_start|>", "<|im_end|>"]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), GGUF_VOCABULARY)]
    kinds = [1] * 258 + [3, 3] + [5] * (GGUF_VOCABULARY - 260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e", "l l"])
    ids = {"tokenizer.ggml.bos_token_id": 258, "tokenizer.ggml.eos_token_id": 259}
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in ({f"{architecture}.{name}": value for name, value in values.items()} | ids | metadata).items():
        add[type(value)](name, value)
    generator = np.random.default_rng(seed)
    names: dict[str, tuple[int, ...]] = {"token_embd": (GGUF_VOCABULARY, GGUF_HIDDEN), "output_norm": (GGUF_HIDDEN,)}
    layer: dict[str, tuple[int, ...]] = {"attn_norm": (GGUF_HIDDEN,), "ffn_norm": (GGUF_HIDDEN,)}
    for name, shape in shapes.items():
        (names if name.startswith(("output", "position_embd")) else layer)[name] = shape
    names |= {f"blk.{index}.{name}": shape for index in range(GGUF_LAYERS) for name, shape in layer.items() if shape}
    for name, shape in names.items():
        data = generator.standard_normal(shape).astype(np.float32) * 0.2 + (1 if name.endswith("_norm") else 0)
        is_matrix = len(shape) > 1 and shape[-1] % 32 == 0 and not name.endswith(".bias")
        raw = gguf.GGMLQuantizationType[kind if is_matrix else "F32"]
        full_name = name if name.endswith(".bias") else f"{name}.weight"
        writer.add_tensor(full_name, gguf.quants.quantize(data, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_byte_alphabet() -> list[int]:
    """Return the code points that stand for the 256 bytes in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*printable, *range(256, 256 + 256 - len(printable))]


def llama_cpp_logits(path: Path, ids: list[int], lora: Path | None = None) -> torch.Tensor:
    """Return llama.cpp's logits (tokens, vocabulary) for ``ids``, with float32 caches."""
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(
        str(path), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1,
        lora_path=str(lora) if lora else None,
    )  # fmt: skip
    try:
        model.eval(ids)
        return torch.from_numpy(np.array(model.scores[: len(ids)], dtype=np.float32))
    finally:
        model.close()


@pytest.fixture(scope="session")
def write_gguf_model() -> Callable[..., Path]:
    """Return :func:`write_gguf`."""
    return write_gguf


@pytest.fixture(scope="session")
def llama_logits() -> Callable[..., torch.Tensor]:
    """Return :func:`llama_cpp_logits`."""
    return llama_cpp_logits
