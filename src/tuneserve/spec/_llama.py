"""Llama 2 and 3, SmolLM2, and whatever else says that it is a Llama."""

from dataclasses import replace

from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain
from tuneserve.spec._spec import ModelSpec


def read_llama(fields: Fields) -> ModelSpec:
    """Read a ``LlamaConfig``."""
    bias = fields.flag("attention_bias", False)
    return replace(
        read_plain(fields, context_length=2048),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
