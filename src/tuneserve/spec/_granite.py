"""Granite 3, the dense ones: a Llama with multipliers."""

from dataclasses import replace

from tuneserve.spec._fields import Fields
from tuneserve.spec._llama import read_llama
from tuneserve.spec._spec import ModelSpec


def read_granite(fields: Fields) -> ModelSpec:
    """Read a ``GraniteConfig``."""
    return replace(
        read_llama(fields),
        scale=fields.number("attention_multiplier", 1.0),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
    )
