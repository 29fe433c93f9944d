"""The key-value cache of any family, from the usual fields of its configuration."""

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
# Every how manyth layer sees everything, where neither layer_types nor a pattern says it.
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2}
_WITHOUT_WINDOW_UNLESS_ASKED = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """``full`` layers keep all tokens, ``windowed`` ones the last ``window``, ``others`` a state of fixed size.

    ``elements`` are those that one token takes in one layer, keys and values together; ``latent`` says that these are
    compressed (multi-head latent attention), so that tensor parallelism does not divide them.
    """

    layers: int
    heads: int
    kv_heads: int
    full: int
    windowed: int
    others: int
    window: int | None
    elements: int
    latent: bool
    context: int | None

    def bytes(self, tokens: int, element_bytes: int = 2) -> int:
        """Return what a sequence of so many tokens takes."""
        seen = self.full * tokens + self.windowed * min(tokens, self.window or tokens)
        return seen * self.elements * element_bytes

    @property
    def per_token(self) -> int:
        """Bytes of one more token in 16 bits while no window is full."""
        return self.bytes(1)


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
        latent=latent,
        context=size("context") if known else None,
    )


def _layer_kinds(config: Mapping[str, Any], fields: Fields, layers: int, window: int | None) -> list[str]:
    """Return the kind of attention of each layer; what is none of the known kinds keeps a state of fixed size."""
    family, kinds = config.get("model_type"), config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers or not all(isinstance(kind, str) for kind in kinds):
            raise SpecError(f"layer_types in config.json is not a list of {layers} kinds; download the model again.")
        return kinds
    asked = fields.flag("use_sliding_window", family not in _WITHOUT_WINDOW_UNLESS_ASKED)
    if window is None or not asked:
        return [_FULL] * layers
    period = fields.size("sliding_window_pattern", _PERIODS.get(str(family), layers + 1))
    return [_FULL if (layer + 1) % period == 0 else _WINDOWED for layer in range(layers)]
