"""Mistral 7B, Nemo, Small and Large, and Ministral 8B: a Llama with a sliding window in some versions."""

from dataclasses import replace

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, read_windows
from tuneserve.spec._spec import ModelSpec


def read_mistral(fields: Fields) -> ModelSpec:
    """Read a ``MistralConfig``: all layers have the window, or none has.

    Raises:
        SpecError: a field is malformed, or there are ``layer_types``, which are Ministral's.
    """
    if "layer_types" in fields.names():
        raise SpecError("config.json has layer_types, which mistral has not; set model_type to ministral there.")
    return _read(fields)


def read_ministral(fields: Fields) -> ModelSpec:
    """Read a ``MinistralConfig``: ``layer_types`` says which layers have the window."""
    return _read(fields)


def _read(fields: Fields) -> ModelSpec:
    spec = read_plain(fields, kv_heads=8, context_length=131072)
    window = fields.optional_size("sliding_window", 4096)
    return replace(spec, per_layer=read_windows(fields, spec, window, [window is not None] * spec.layers))
