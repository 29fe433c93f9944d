"""Mistral 7B, Nemo, Small and Large, Ministral 8B and Ministral 3: a Llama with a sliding window in some versions."""

from dataclasses import replace

from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, read_windows, windowed
from tuneserve.spec._positions import QueryScaling
from tuneserve.spec._rope import rope_section
from tuneserve.spec._spec import ModelSpec

_WINDOW = 4096
_CONTEXT = 131072
_MINISTRAL3_ROPE = {
    "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def read_mistral(fields: Fields) -> ModelSpec:
    """Read a ``MistralConfig``: all layers have the window, or none has."""
    spec = read_plain(fields, kv_heads=8, context_length=_CONTEXT)
    return replace(spec, per_layer=windowed(fields, spec, fields.optional_size("sliding_window", _WINDOW)))


def read_ministral(fields: Fields) -> ModelSpec:
    """Read a ``MinistralConfig``: ``layer_types`` says which layers have the window."""
    spec = read_plain(fields, kv_heads=8, context_length=_CONTEXT)
    window = fields.optional_size("sliding_window", _WINDOW)
    return replace(spec, per_layer=read_windows(fields, spec, window, [window is not None] * spec.layers))


def read_ministral3(fields: Fields) -> ModelSpec:
    """Read a ``Ministral3Config``: queries grow with their position, and all layers have the window or none has."""
    if not fields.names() & {"rope_parameters", "rope_scaling"}:
        fields = fields.with_field("rope_parameters", _MINISTRAL3_ROPE)
    spec = read_plain(fields, kv_heads=8, head_dim=128, context_length=262144, norm_eps=1e-5)
    own = rope_section(fields)
    original = own.size("original_max_position_embeddings", spec.context_length)
    return replace(
        spec,
        per_layer=windowed(fields, spec, fields.optional_size("sliding_window", None)),
        query_scaling=QueryScaling(beta=own.number("llama_4_scaling_beta"), original_length=original),
    )
