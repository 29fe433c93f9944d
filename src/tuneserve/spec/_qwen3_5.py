"""Qwen 3.5, dense and with experts: gated delta nets (arXiv:2412.06464), and attention with a gate every few layers."""

from dataclasses import replace

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._moe import read_experts
from tuneserve.spec._plain import read_plain
from tuneserve.spec._positions import RopeSpec
from tuneserve.spec._rope import partial_factor, rope_of, rope_section
from tuneserve.spec._spec import DeltaNetSpec, LayerSpec, ModelSpec

_CONTEXT = 32768
_LINEAR, _FULL = "linear_attention", "full_attention"
# Positions in three dimensions are one and the same for text, whatever sections they are divided into.
_ROPE_KINDS = ("default", "linear", "yarn")


def read_qwen3_5(fields: Fields) -> ModelSpec:
    """Read a ``Qwen3_5TextConfig``."""
    return _read(fields, kv_heads=4)


def read_qwen3_5_moe(fields: Fields) -> ModelSpec:
    """Read a ``Qwen3_5MoeTextConfig``: experts in every layer, one of them for all tokens."""
    size = fields.size("moe_intermediate_size", 512)
    spec = _read(fields.with_field("intermediate_size", size), kv_heads=2)
    experts = replace(
        read_experts(fields, spec, "num_experts", (256, 8), size, normalised=True),
        shared_size=fields.size("shared_expert_intermediate_size", 512),
    )
    return replace(spec, per_layer=tuple(replace(layer, experts=experts) for layer in spec.per_layer))


def _read(fields: Fields, kv_heads: int) -> ModelSpec:
    fields.require("attn_output_gate", (True,), True)
    spec = read_plain(fields, heads=16, kv_heads=kv_heads, head_dim=256, context_length=_CONTEXT, rope=_rope)
    bias = fields.flag("attention_bias", False)
    return replace(
        spec,
        per_layer=_layers(fields, spec),
        norm_plus_one=True,
        qk_norm=True,
        output_gate=True,
        qkv_bias=bias,
        output_bias=bias,
    )


def _layers(fields: Fields, spec: ModelSpec) -> tuple[LayerSpec, ...]:
    kinds = fields.texts("layer_types", spec.layers)
    if kinds is None:
        interval = fields.size("full_attention_interval", 4)
        kinds = [_LINEAR if (index + 1) % interval else _FULL for index in range(spec.layers)]
    if unknown := sorted(set(kinds) - {_LINEAR, _FULL}):
        raise SpecError(f"the layer type {unknown[0][:40]!r} is not in the native engine; use another engine.")
    net = _delta_net(fields)
    pairs = zip(spec.per_layer, kinds, strict=True)
    return tuple(LayerSpec(rope=None, delta_net=net) if kind == _LINEAR else layer for layer, kind in pairs)


def _delta_net(fields: Fields) -> DeltaNetSpec:
    net = DeltaNetSpec(
        key_heads=fields.size("linear_num_key_heads", 16),
        value_heads=fields.size("linear_num_value_heads", 32),
        key_dim=fields.size("linear_key_head_dim", 128),
        value_dim=fields.size("linear_value_head_dim", 128),
        kernel=fields.size("linear_conv_kernel_dim", 4, most=64),
    )
    if net.value_heads % net.key_heads:
        raise SpecError(
            f"config.json has {net.value_heads} linear value heads over {net.key_heads} key heads; "
            "download the model again."
        )
    return net


def _rope(fields: Fields, head_dim: int, context_length: int) -> RopeSpec:
    own = rope_section(fields)
    if not {"partial_rotary_factor"} & (own.names() | fields.names()):
        own = own.with_field("partial_rotary_factor", 0.25)
    factor = partial_factor(fields, own)
    if factor > 1:
        raise SpecError("partial_rotary_factor in config.json is above 1; download or save the model again.")
    return rope_of(fields, own, int(head_dim * factor), context_length, 10000.0, _ROPE_KINDS)
