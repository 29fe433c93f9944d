"""Gemma 2 (arXiv:2408.00118) and the text part of Gemma 3 (arXiv:2503.19786)."""

from collections.abc import Callable
from dataclasses import replace

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, read_windows
from tuneserve.spec._positions import RopeSpec
from tuneserve.spec._rope import partial_factor, read_rope, rope_of
from tuneserve.spec._spec import ModelSpec

_WINDOW = 4096
_GLOBAL, _LOCAL = 1_000_000.0, 10_000.0
# Scaling that grows with the text is not defined for two kinds of positions at once.
_KINDS = ("default", "linear", "llama3", "yarn")


def read_gemma2(fields: Fields) -> ModelSpec:
    """Read a ``Gemma2Config``: every other layer has a window, the first of them too."""
    spec = _read(fields, 8192, read_rope)
    window = fields.optional_size("sliding_window", _WINDOW)
    return replace(
        spec,
        per_layer=read_windows(fields, spec, window, [index % 2 == 0 for index in range(spec.layers)]),
        softcap=fields.optional_number("attn_logit_softcapping", 50.0),
        logit_softcap=fields.optional_number("final_logit_softcapping", 30.0),
    )


def read_gemma3(fields: Fields) -> ModelSpec:
    """Read a ``Gemma3TextConfig``: five layers with a window and positions of their own, then one with neither."""
    fields.require("attn_logit_softcapping", (None,), None)
    # What is published of the larger ones leaves out these two.
    spec = _read(fields, 131_072, _global_rope, heads=8, vocab_size=262_208)
    nearby = _local_rope(fields, spec.head_dim, spec.context_length)
    window = fields.optional_size("sliding_window", _WINDOW)
    pattern = fields.size("sliding_window_pattern", 6)
    default = [(index + 1) % pattern != 0 for index in range(spec.layers)]
    return replace(
        spec,
        per_layer=read_windows(fields, spec, window, default, nearby),
        qk_norm=True,
        logit_softcap=fields.optional_number("final_logit_softcapping", None),
    )


def _read(
    fields: Fields,
    context_length: int,
    rope: Callable[[Fields, int, int], RopeSpec],
    heads: int | None = None,
    vocab_size: int | None = None,
) -> ModelSpec:
    fields.require("use_bidirectional_attention", (None, False), None)
    spec = read_plain(
        fields,
        heads=heads,
        kv_heads=4,
        head_dim=256,
        vocab_size=vocab_size,
        context_length=context_length,
        tied=True,
        rope=rope,
        activation_field="hidden_activation",
        activation="gelu_pytorch_tanh",
    )
    bias = fields.flag("attention_bias", False)
    return replace(
        spec,
        scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        norm_plus_one=True,
        post_norms=True,
        embedding_scale=spec.hidden_size**0.5,
        qkv_bias=bias,
        output_bias=bias,
    )


def _global_rope(fields: Fields, head_dim: int, context_length: int) -> RopeSpec:
    by_type = rope_by_type(fields)
    own = fields.section("rope_scaling") or by_type.section("full_attention") or Fields({})
    return _rope(fields, own, head_dim, context_length, fields.number("rope_theta", _GLOBAL))


def _local_rope(fields: Fields, head_dim: int, context_length: int) -> RopeSpec:
    own = rope_by_type(fields).section("sliding_attention") or Fields({})
    return _rope(fields, own, head_dim, context_length, fields.number("rope_local_base_freq", _LOCAL))


def _rope(fields: Fields, own: Fields, head_dim: int, context_length: int, theta: float) -> RopeSpec:
    if partial_factor(fields, own) != 1.0:
        raise SpecError("partial_rotary_factor in config.json is not 1, which Gemma 3 has no use for; correct it.")
    theta = own.number("rope_theta", theta)
    return replace(rope_of(fields, own, head_dim, context_length, theta, _KINDS), theta=theta)


def rope_by_type(fields: Fields) -> Fields:
    """Return what is stated of the positions of each type of layer."""
    by_type = fields.section("rope_parameters") or Fields({})
    if not by_type.names() <= {"full_attention", "sliding_attention"}:
        raise SpecError("rope_parameters in config.json is not per type of layer, as this family has it; correct it.")
    return by_type
