"""Qwen 2, 2.5 and 3, the dense ones."""

from dataclasses import replace

from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, read_windows
from tuneserve.spec._spec import LayerSpec, ModelSpec


def read_qwen2(fields: Fields) -> ModelSpec:
    """Read a ``Qwen2Config``: query, key and value have a bias."""
    spec = read_plain(fields, kv_heads=32, context_length=32768)
    return replace(spec, per_layer=_layers(fields, spec), qkv_bias=True)


def read_qwen3(fields: Fields) -> ModelSpec:
    """Read a ``Qwen3Config``: heads of query and key are normalised."""
    spec = read_plain(fields, kv_heads=32, head_dim=128, context_length=32768)
    bias = fields.flag("attention_bias", False)
    return replace(spec, per_layer=_layers(fields, spec), qk_norm=True, qkv_bias=bias, output_bias=bias)


def _layers(fields: Fields, spec: ModelSpec) -> tuple[LayerSpec, ...]:
    window = fields.optional_size("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    first = fields.size("max_window_layers", 28, least=0)
    return read_windows(fields, spec, window, [window is not None and index >= first for index in range(spec.layers)])
