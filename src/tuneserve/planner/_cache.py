"""The key-value cache of any family, from the usual fields of its configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneserve.errors import SpecError
from tuneserve.spec import Fields

_NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
}
_MAX_LAYERS = 4096
_FULL, _WINDOWED = "full_attention", "sliding_attention"
_CHUNKED = "chunked_attention"
_LINEAR = "linear_attention"
# Takes the keys and values of an earlier layer.
_SHARING = "sharing"
# Every how manyth layer sees everything, where neither layer_types nor a pattern says it.
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gemma4_text": 6, "gpt_oss": 2}
_WITHOUT_WINDOW_UNLESS_ASKED = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """``full`` layers keep all tokens, ``windowed`` ones the last ``window``, ``others`` a state or nothing.

    ``elements`` are those that one token takes in one layer, keys and values together, ``full_elements`` in a full one;
    ``latent`` says that these are compressed (multi-head latent attention), so that tensor parallelism does not divide
    them. ``state`` is the bytes of all states of a sequence.
    """

    layers: int
    heads: int
    kv_heads: int
    full: int
    windowed: int
    others: int
    window: int | None
    elements: int
    full_elements: int
    state: int
    latent: bool
    context: int | None

    def bytes(self, tokens: int, element_bytes: int = 2) -> int:
        """Return what a sequence of so many tokens takes."""
        windowed = self.windowed * min(tokens, self.window or tokens) * self.elements
        return self.state + (self.full * tokens * self.full_elements + windowed) * element_bytes

    @property
    def per_token(self) -> int:
        """Bytes of one more token in 16 bits while no window is full."""
        return self.bytes(1) - self.state


def read_cache(config: Mapping[str, Any]) -> CacheShape:
    """Read the shape of the cache.

    Raises:
        SpecError: the configuration does not say it, or says what cannot be.
    """
    fields = Fields(config)

    def size(what: str, default: Any = None) -> int:
        name = next((name for name in _NAMES[what] if config.get(name) is not None), None)
        if name is None and default is not None:
            return int(default)
        return fields.size(name or _NAMES[what][0])

    layers, heads = size("layers"), size("heads")
    kv_heads = size("kv_heads", 1 if config.get("multi_query") is True else heads)
    if layers > _MAX_LAYERS or heads % kv_heads:
        raise SpecError(
            f"config.json has {layers} layers, {heads} heads over {kv_heads} key-value heads; download the model again."
        )
    latent = config.get("kv_lora_rank") is not None
    if latent:
        elements = fields.size("kv_lora_rank") + fields.size("qk_rope_head_dim")
    else:
        elements = 2 * kv_heads * fields.size("head_dim", size("hidden") // heads or None)
    known = any(config.get(name) is not None for name in _NAMES["context"])
    window = fields.size("sliding_window") if config.get("sliding_window") is not None else None
    kinds = _layer_kinds(config, fields, layers, window)
    windowed = kinds.count(_WINDOWED) + kinds.count(_CHUNKED)
    if _CHUNKED in kinds:
        window = fields.size("attention_chunk_size", window)
    return CacheShape(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        full=kinds.count(_FULL),
        windowed=windowed,
        others=layers - kinds.count(_FULL) - windowed,
        window=window if windowed else None,
        elements=elements,
        full_elements=_full_elements(fields, kv_heads) or elements,
        state=kinds.count(_LINEAR) * _state_bytes(config, fields),
        latent=latent,
        context=size("context") if known else None,
    )


def _full_elements(fields: Fields, kv_heads: int) -> int | None:
    """Return what a token takes in a full layer where that is not what it takes in any other (Gemma 4)."""
    if fields.text("model_type", "") != "gemma4_text":
        return None
    by_layer = fields.section("per_layer_config") or Fields({})
    for name in sorted(by_layer.names())[:1]:
        own = by_layer.section(name) or Fields({})
        return 2 * own.size("num_key_value_heads", kv_heads) * own.size("head_dim")
    if fields.flag("attention_k_eq_v", False):
        kv_heads = fields.size("num_global_key_value_heads", kv_heads)
    return 2 * kv_heads * fields.size("global_head_dim", 512)


def _state_bytes(config: Mapping[str, Any], fields: Fields) -> int:
    """Return the bytes of the state of one layer of linear attention, in float32; 0 where its size is not stated."""
    sizes = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    return 4 * math.prod(fields.size(name) for name in sizes) if all(config.get(name) for name in sizes) else 0


def _layer_kinds(config: Mapping[str, Any], fields: Fields, layers: int, window: int | None) -> list[str]:
    """Return the kind of attention of each layer; what is none of the known kinds keeps a state of fixed size."""
    sharing = fields.size("num_kv_shared_layers", 0, least=0, most=layers)
    return _own_kinds(config, fields, layers, window)[: layers - sharing] + [_SHARING] * sharing


def _own_kinds(config: Mapping[str, Any], fields: Fields, layers: int, window: int | None) -> list[str]:
    family, kinds = config.get("model_type"), config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers or not all(isinstance(kind, str) for kind in kinds):
            raise SpecError(f"layer_types in config.json is not a list of {layers} kinds; download the model again.")
        return kinds
    if config.get("full_attention_interval") is not None:
        interval = fields.size("full_attention_interval")
        return [_LINEAR if (layer + 1) % interval else _FULL for layer in range(layers)]
    asked = fields.flag("use_sliding_window", family not in _WITHOUT_WINDOW_UNLESS_ASKED)
    if window is None or not asked:
        return [_FULL] * layers
    period = fields.size("sliding_window_pattern", _PERIODS.get(str(family), layers + 1))
    return [_FULL if (layer + 1) % period == 0 else _WINDOWED for layer in range(layers)]
