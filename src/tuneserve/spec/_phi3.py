"""Phi 3, 3.5 and 4 (arXiv:2404.14219): a Llama whose checkpoint has fused weights."""

from dataclasses import replace

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, windowed
from tuneserve.spec._positions import RopeSpec
from tuneserve.spec._rope import partial_factor, rope_of, rope_section
from tuneserve.spec._spec import ModelSpec

# Older names of longrope.
_LONGROPE = ("su", "yarn")


def read_phi3(fields: Fields) -> ModelSpec:
    """Read a ``Phi3Config``."""
    spec = read_plain(fields, context_length=4096, norm_eps=1e-5, rope=_rope)
    layers = windowed(fields, spec, fields.optional_size("sliding_window", None))
    return replace(spec, per_layer=layers, fused=True)


def _rope(fields: Fields, head_dim: int, context_length: int) -> RopeSpec:
    own = rope_section(fields)
    factor = partial_factor(fields, own)
    if factor > 1:
        raise SpecError("partial_rotary_factor in config.json is above 1; download or save the model again.")
    if own.text("rope_type", own.text("type", "default")) in _LONGROPE:
        own = own.with_field("rope_type", "longrope")
    if "original_max_position_embeddings" not in fields.names():
        fields = fields.with_field("original_max_position_embeddings", 4096)
    return rope_of(fields, own, int(head_dim * factor), context_length, 10000.0, ("default", "longrope"))
