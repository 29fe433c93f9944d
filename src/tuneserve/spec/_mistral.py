"""Mistral 7B, Nemo, Small and Large, and Ministral 8B: a Llama with a sliding window in some versions."""

from dataclasses import replace

from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, read_windows, windowed
from tuneserve.spec._spec import ModelSpec

_WINDOW = 4096
_CONTEXT = 131072


def read_mistral(fields: Fields) -> ModelSpec:
    """Read a ``MistralConfig``: all layers have the window, or none has."""
    spec = read_plain(fields, kv_heads=8, context_length=_CONTEXT)
    return replace(spec, per_layer=windowed(fields, spec, fields.optional_size("sliding_window", _WINDOW)))


def read_ministral(fields: Fields) -> ModelSpec:
    """Read a ``MinistralConfig``: ``layer_types`` says which layers have the window."""
    spec = read_plain(fields, kv_heads=8, context_length=_CONTEXT)
    window = fields.optional_size("sliding_window", _WINDOW)
    return replace(spec, per_layer=read_windows(fields, spec, window, [window is not None] * spec.layers))
