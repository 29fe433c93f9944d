"""A configuration as GGUF metadata, under the names of llama.cpp's src/llama-arch.cpp.

Where llama.cpp lacks a family's sliding window, ``context_length`` ends with the window: up to there both are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneserve.artifacts.gguf._header import Value
from tuneserve.artifacts.gguf._mix import Shape
from tuneserve.artifacts.gguf._rope import Factors, read_rope
from tuneserve.errors import SpecError
from tuneserve.spec import GGUF_ARCHITECTURES, Fields

# What Gemma 3's own configurations leave out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    "gemma2": {"query_pre_attn_scalar": 256},
}
_GPT2_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
}
_EXPERTS = ("num_local_experts", "num_experts")
_ACTIVATION_NAMES = ("hidden_activation", "hidden_act", "activation_function")
_GELU = ("gelu_pytorch_tanh", "gelu_new", None)
_ACTIVATIONS = {"gemma": (*_GELU, "gelu"), "gemma2": _GELU, "gemma3_text": _GELU, "gpt2": _GELU}
# llama.cpp knows these scales of attention by the number of layers alone, from Gemma 2 and 3 of 27B.
_SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3_text": 62}
_TIED = ("gemma", "gemma2", "gemma3_text", "gpt2", "smollm3")
# Every how manyth layer sees everything, where llama.cpp is not told.
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2}
_MAX_LAYERS, _MAX_EXPERTS = 512, 1024


@dataclass(frozen=True)
class Model:
    """What a configuration says to a GGUF file.

    ``family`` is a key of ``GGUF_ARCHITECTURES``; ``metadata`` has the architecture's prefix already; ``tensors``
    follow from the configuration alone.
    """

    family: str
    shape: Shape
    head_dim: int
    vocab_size: int
    tied: bool
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Factors]


def read_model(config: Mapping[str, Any]) -> Model:
    """Read the ``config.json`` of a model, of a multimodal wrapper its text part.

    Raises:
        SpecError: the family is not one of ``GGUF_ARCHITECTURES``, a field is malformed, or it asks for something that
            llama.cpp's code for the architecture does not do.
    """
    config, family = _text_config(config)
    fields = Fields(config)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", heads)
    head_dim = fields.size("head_dim", hidden // heads or None)
    layers = fields.size("num_hidden_layers")
    experts = next((fields.size(name) for name in _EXPERTS if config.get(name) is not None), 0)
    if layers > _MAX_LAYERS or experts > _MAX_EXPERTS or heads % kv_heads or head_dim % 2:
        raise SpecError(
            f"config.json has {layers} layers, {experts} experts, {heads} heads over {kv_heads} key-value heads of "
            f"{head_dim}, which llama.cpp cannot hold; download the model again."
        )
    _refuse_unlike(family, config, fields, head_dim)
    context = _context(family, fields)
    metadata: dict[str, Value] = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": fields.size("intermediate_size", 4 * hidden if family == "gpt2" else None),
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "vocab_size": fields.size("vocab_size"),
    }
    tensors: Mapping[str, Factors] = {}
    if family == "gpt2":
        metadata["attention.layer_norm_epsilon"] = fields.number("layer_norm_epsilon", 1e-5)
    else:
        metadata["attention.layer_norm_rms_epsilon"] = fields.number("rms_norm_eps", 1e-6)
        rope = read_rope(config, head_dim, longrope=family == "phi3")
        metadata |= rope.metadata
        tensors = rope.tensors
    metadata |= _of_family(family, config, fields, layers, experts)
    architecture = GGUF_ARCHITECTURES[family]
    return Model(
        family,
        Shape(architecture=architecture, layers=layers, heads=heads, kv_heads=kv_heads, experts=experts),
        head_dim,
        fields.size("vocab_size"),
        fields.flag("tie_word_embeddings", family in _TIED),
        {f"{architecture}.{key}": value for key, value in metadata.items()},
        tensors,
    )


def _text_config(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    text = config.get("text_config")
    if isinstance(text, Mapping):
        tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
        config = {**tied, **text}
    family = Fields(config).text("model_type")
    if family not in GGUF_ARCHITECTURES:
        raise SpecError(
            f"models of the {family[:40]!r} family cannot be written as GGUF, only those of "
            f"{', '.join(GGUF_ARCHITECTURES)}; export as merged_16bit and convert that with llama.cpp's own script."
        )
    if family == "gpt2":
        config = {_GPT2_NAMES.get(key, key): value for key, value in config.items()}
    given = {key: value for key, value in config.items() if value is not None}
    return {**_DEFAULTS.get(family, {}), **given}, family


def _context(family: str, fields: Fields) -> int:
    context = fields.size("max_position_embeddings")
    always = family in ("mistral", "mixtral", "phi3")
    if (always or fields.flag("use_sliding_window", False)) and "sliding_window" in fields.names():
        return min(context, fields.size("sliding_window"))
    return context


def _of_family(family: str, config: Mapping[str, Any], fields: Fields, layers: int, experts: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    if experts:
        found["expert_count"] = experts
        found["expert_used_count"] = used = fields.size("num_experts_per_tok")
        if used > experts:
            raise SpecError(f"config.json uses {used} of {experts} experts; download the model again.")
        if "moe_intermediate_size" in config:
            found["expert_feed_forward_length"] = fields.size("moe_intermediate_size")
    if family == "qwen2_moe":
        found["expert_shared_feed_forward_length"] = fields.size("shared_expert_intermediate_size")
    if family == "gpt_oss":
        found["expert_feed_forward_length"] = fields.size("intermediate_size")
    if family == "granite":
        found["attention.scale"] = fields.number("attention_multiplier", 1.0)
        found["embedding_scale"] = fields.number("embedding_multiplier", 1.0)
        found["residual_scale"] = fields.number("residual_multiplier", 1.0)
        found["logit_scale"] = fields.number("logits_scaling", 1.0)
    if family == "gemma2":
        found["attn_logit_softcapping"] = fields.number("attn_logit_softcapping")
        found["final_logit_softcapping"] = fields.number("final_logit_softcapping")
    if family == "gemma3_text" and config.get("final_logit_softcapping") is not None:
        found["final_logit_softcapping"] = fields.number("final_logit_softcapping")
    if family in _PERIODS:
        found["attention.sliding_window"] = fields.size("sliding_window")
        windowed = _windowed(family, config, layers)
        if windowed != _every(_PERIODS[family], layers):
            found["attention.sliding_window_pattern"] = windowed
    return found


def _windowed(family: str, config: Mapping[str, Any], layers: int) -> list[bool]:
    """Return which layers see only the window."""
    kinds = config.get("layer_types")
    if kinds is None:
        return _every(Fields(config).size("sliding_window_pattern", _PERIODS[family]), layers)
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise SpecError(f"layer_types in config.json is not a list of {layers} kinds of attention; download it again.")
    return [kind == known[0] for kind in kinds]


def _every(period: int, layers: int) -> list[bool]:
    return [(layer + 1) % period != 0 for layer in range(layers)]


def _refuse_unlike(family: str, config: Mapping[str, Any], fields: Fields, head_dim: int) -> None:
    """Refuse what llama.cpp's code for the architecture would compute otherwise, having no metadata for it."""
    activation = next((name for name in _ACTIVATION_NAMES if name in config), "hidden_act")
    wanted: dict[str, tuple[Any, ...]] = {activation: _ACTIVATIONS.get(family, ("silu", None))}
    if family in ("qwen2_moe", "qwen3_moe"):
        normalised = (True,) if family == "qwen3_moe" else (False, None)
        wanted |= {"norm_topk_prob": normalised, "decoder_sparse_step": (1, None), "mlp_only_layers": ([], None)}
    if family in _SCALED_BY_HIDDEN:
        by_hidden = config.get("num_hidden_layers") == _SCALED_BY_HIDDEN[family]
        scalar = fields.size("hidden_size") // fields.size("num_attention_heads") if by_hidden else head_dim
        wanted["query_pre_attn_scalar"] = (scalar,)
    if family == "gemma3_text":
        wanted |= {"attn_logit_softcapping": (None,), "use_bidirectional_attention": (False, None)}
    if family == "smollm3":
        rotated = [int((layer + 1) % 4 != 0) for layer in range(fields.size("num_hidden_layers"))]
        wanted |= {"no_rope_layers": (rotated, None), "no_rope_layer_interval": (4, None)}
    if family == "granite":
        wanted["head_dim"] = (fields.size("hidden_size") // fields.size("num_attention_heads"), None)
    if family == "gpt2":
        wanted |= {"scale_attn_by_inverse_layer_idx": (False, None), "scale_attn_weights": (True, None)}
    if family == "gpt_oss":
        wanted |= {"swiglu_limit": (7.0, None), "attention_bias": (True, None)}
    for name, known in wanted.items():
        if config.get(name) not in known:
            raise SpecError(
                f"{name} in config.json is {str(config.get(name))[:60]}, and llama.cpp computes models of this family "
                f"with {str(known[0])[:60]}; export as merged_16bit and use an engine that reads it."
            )
