"""The ``config.json`` of the model in a GGUF file, from metadata under the names of llama.cpp's src/llama-arch.cpp.

What the metadata leaves out is what llama.cpp's code for the architecture takes for granted.
"""

from collections.abc import Mapping
from typing import Any

from tuneserve.checkpoint import GgufFile
from tuneserve.errors import SourceError
from tuneserve.sources._gguf_rope import rope_fields
from tuneserve.spec import GGUF_ARCHITECTURES, Fields

_FAMILIES = {name: family for family, name in GGUF_ARCHITECTURES.items() if family not in ("mistral", "mixtral")}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_oss": "GptOssForCausalLM",
}
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
# llama.cpp knows the scales of attention in Gemma 2 and 3 of 27B by the number of layers alone.
_SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3_text": 62}
# Every how manyth layer sees everything, where the file does not say.
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2}
_MAX_LAYERS = 4096
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
}


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """Return the configuration of the model in ``file``; its dtype is left to who reads the weights.

    Raises:
        SourceError: the architecture is not one of the known families.
        SpecError: a field is missing or malformed.
    """
    family, architecture = _family(file)
    fields = Fields(_without_prefix(file.metadata, architecture), f"{architecture}.* in {file.paths[0]}")
    hidden, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    epsilon = "layer_norm_epsilon" if family == "gpt2" else "layer_norm_rms_epsilon"
    head_dim = fields.size("attention.key_length", hidden // heads or None)
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": fields.size(_feed_forward(family)),
        "num_hidden_layers": fields.size("block_count", most=_MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": _vocabulary(file),
        "max_position_embeddings": fields.size("context_length"),
        "rms_norm_eps": fields.number(f"attention.{epsilon}"),
    }
    if family != "gpt2":
        config |= rope_fields(file, family, fields, config)
    config |= _of_family(file, family, fields, config)
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config |= _token_ids(file.metadata)
    return _as_gpt2(config) if family == "gpt2" else config


def _as_gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    absent = ("num_key_value_heads", "head_dim")
    return {_GPT2_NAMES.get(key, key): value for key, value in config.items() if key not in absent}


def _family(file: GgufFile) -> tuple[str, str]:
    architecture = file.metadata.get("general.architecture")
    family = _FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if file.metadata.get("general.type", "model") != "model" or family is None or not isinstance(architecture, str):
        kind = file.metadata.get("general.type", "model")
        raise SourceError(
            f"{file.paths[0]} is of the type {str(kind)[:40]!r} and architecture {str(architecture)[:40]!r}, and only "
            f"models of {', '.join(_FAMILIES)} can be read; use the model's original directory."
        )
    if family == "llama" and file.metadata.get("llama.expert_count"):
        family = "mixtral"
    return family, architecture


def _without_prefix(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    prefix = f"{architecture}."
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def _vocabulary(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise SourceError(f"{file.paths[0]} has no embedding, so it is not a whole model; download it again.")
    return embedding.shape[0]


def _feed_forward(family: str) -> str:
    return "expert_feed_forward_length" if family == "gpt_oss" else "feed_forward_length"


def _of_family(file: GgufFile, family: str, fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if family == "gpt2":
        return {"activation_function": "gelu_new"}
    found["hidden_act"] = "silu"
    if family in _GEMMAS:
        found["hidden_act"] = found["hidden_activation"] = "gelu_pytorch_tanh"
    if family in ("llama", "granite", "smollm3"):
        found["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if family == "granite":
        found["attention_multiplier"] = fields.number("attention.scale", config["head_dim"] ** -0.5)
        found["embedding_multiplier"] = fields.number("embedding_scale", 1.0)
        found["residual_multiplier"] = fields.number("residual_scale", 1.0)
        found["logits_scaling"] = fields.number("logit_scale")
    if family in ("mixtral", "gpt_oss", "qwen2_moe", "qwen3_moe"):
        found["num_experts_per_tok"] = fields.size("expert_used_count")
        found["num_experts" if "qwen" in family else "num_local_experts"] = fields.size("expert_count")
    if family in ("qwen2_moe", "qwen3_moe"):
        found["moe_intermediate_size"] = fields.size("expert_feed_forward_length")
        found["norm_topk_prob"] = family == "qwen3_moe"
    if family == "qwen2_moe":
        found["shared_expert_intermediate_size"] = fields.size("expert_shared_feed_forward_length")
    if family in _SCALED_BY_HIDDEN:
        by_hidden = config["num_hidden_layers"] == _SCALED_BY_HIDDEN[family]
        heads: int = config["num_attention_heads"]
        found["query_pre_attn_scalar"] = config["hidden_size"] // heads if by_hidden else config["head_dim"]
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if family in ("gemma2", "gemma3_text") and name in fields.names():
            found[name] = fields.number(name)
    # Zero where there is none.
    if family == "phi3" and file.metadata.get("phi3.attention.sliding_window"):
        found["sliding_window"] = fields.size("attention.sliding_window")
    if family in _PERIODS:
        found |= _window(file, family, fields, config["num_hidden_layers"])
    return found


def _window(file: GgufFile, family: str, fields: Fields, layers: int) -> dict[str, Any]:
    if "attention.sliding_window" not in fields.names():
        return {"layer_types": ["full_attention"] * layers}
    pattern = file.metadata.get(f"{GGUF_ARCHITECTURES[family]}.attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        period = fields.size("attention.sliding_window_pattern", _PERIODS[family])
        pattern = [(layer + 1) % period != 0 for layer in range(layers)]
    if len(pattern) != layers:
        raise SourceError(f"{file.paths[0]} has a pattern of attention for other layers; download it again.")
    kinds = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    return {"sliding_window": fields.size("attention.sliding_window"), "layer_types": kinds}


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in _IDS.items()}
    return {key: value for key, value in found.items() if type(value) is int}
