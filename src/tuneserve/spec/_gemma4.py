"""The text part of Gemma 4: heads of two sizes, layers that share keys and values, an input of their own for each."""

from dataclasses import replace

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._gemma import rope_by_type
from tuneserve.spec._plain import read_plain
from tuneserve.spec._positions import RopeSpec
from tuneserve.spec._rope import partial_factor, rope_of
from tuneserve.spec._spec import LayerInputSpec, LayerSpec, ModelSpec

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PATTERN = 6
_VOCABULARY = 262_144
_GLOBAL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
_LOCAL_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_KINDS = ("default", "linear", "llama3", "yarn", "proportional")


def read_gemma4(fields: Fields) -> ModelSpec:
    """Read a ``Gemma4TextConfig`` without experts."""
    if fields.flag("enable_moe_block", False):
        raise SpecError(
            "experts beside a dense feed-forward layer (enable_moe_block, as in Gemma 4 26B-A4B) are not in the native "
            "engine yet; use another engine."
        )
    # Text sees what came before it in both.
    fields.require("use_bidirectional_attention", (None, "vision"), None)
    # Positions are stated for each type of layer.
    for name in ("rope_scaling", "partial_rotary_factor"):
        fields.require(name, (None,), None)
    spec = read_plain(
        fields,
        heads=8,
        kv_heads=4,
        head_dim=256,
        vocab_size=_VOCABULARY,
        context_length=131_072,
        tied=True,
        rope=lambda fields, head_dim, context: _rope(fields, _SLIDING, head_dim, context),
        activation_field="hidden_activation",
        activation="gelu_pytorch_tanh",
    )
    bias = fields.flag("attention_bias", False)
    return replace(
        spec,
        per_layer=_layers(fields, spec),
        scale=1.0,
        qk_norm=True,
        value_norm=True,
        post_norms=True,
        embedding_scale=spec.hidden_size**0.5,
        layer_input=_layer_input(fields, spec),
        layer_scalars=True,
        logit_softcap=fields.optional_number("final_logit_softcapping", None),
        qkv_bias=bias,
        output_bias=bias,
    )


def _layer_input(fields: Fields, spec: ModelSpec) -> LayerInputSpec | None:
    absent = fields.is_null("hidden_size_per_layer_input")
    size = 0 if absent else fields.size("hidden_size_per_layer_input", 256, least=0)
    if size == 0:
        return None
    vocabulary = fields.size("vocab_size_per_layer_input", _VOCABULARY, least=spec.vocab_size)
    return LayerInputSpec(size=size, vocab_size=vocabulary)


def _layers(fields: Fields, spec: ModelSpec) -> tuple[LayerSpec, ...]:
    kinds = _kinds(fields, spec)
    window = fields.size("sliding_window", 512)
    sizes = _sizes(fields, spec, kinds)
    own = spec.layers - fields.size("num_kv_shared_layers", 0, least=0, most=spec.layers - 1)
    wide = 2 * spec.intermediate_size if fields.flag("use_double_wide_mlp", False) else None
    equal = fields.flag("attention_k_eq_v", False)
    layers: list[LayerSpec] = []
    for index, (kind, (kv_heads, head_dim)) in enumerate(zip(kinds, sizes, strict=True)):
        shares = index >= own
        source = max((other for other in range(own) if kinds[other] == kind), default=None) if shares else None
        if shares and (source is None or sizes[source] != sizes[index]):
            raise SpecError(
                f"layer {index} in config.json has no layer before it whose keys it can take; download the model again."
            )
        layers.append(
            LayerSpec(
                rope=_rope(fields, kind, head_dim, spec.context_length),
                window=window if kind == _SLIDING and window < spec.context_length else None,
                head_dim=None if head_dim == spec.head_dim else head_dim,
                kv_heads=None if kv_heads == spec.kv_heads else kv_heads,
                intermediate_size=wide if shares else None,
                keys_from=source,
                keys_are_values=equal and kind == _FULL and not shares,
            )
        )
    return tuple(layers)


def _kinds(fields: Fields, spec: ModelSpec) -> list[str]:
    kinds = fields.texts("layer_types", spec.layers)
    if kinds is None:
        kinds = [_SLIDING if (index + 1) % _PATTERN else _FULL for index in range(spec.layers)]
    if unknown := sorted(set(kinds) - {_FULL, _SLIDING}):
        raise SpecError(f"the layer type {unknown[0][:40]!r} is not in the native engine; use another engine.")
    # Transformers does so too.
    return [*kinds[:-1], _FULL]


def _sizes(fields: Fields, spec: ModelSpec, kinds: list[str]) -> list[tuple[int, int]]:
    """Return key-value heads and head_dim of each layer, which are stated for all full ones or layer by layer."""
    sizes = [(spec.kv_heads, spec.head_dim)] * spec.layers
    if "per_layer_config" not in fields.names():
        equal = fields.flag("attention_k_eq_v", False)
        kv_heads = (fields.optional_size("num_global_key_value_heads", None) if equal else None) or spec.kv_heads
        full = kv_heads, fields.size("global_head_dim", 512)
        sizes = [full if kind == _FULL else size for kind, size in zip(kinds, sizes, strict=True)]
    by_layer = fields.section("per_layer_config") or Fields({})
    for name in sorted(by_layer.names()):
        own = by_layer.section(name)
        number = int(name) if name.isascii() and name.isdigit() and len(name) <= 4 else spec.layers
        if own is None or number >= spec.layers or not own.names() <= {"head_dim", "num_key_value_heads"}:
            raise SpecError(
                f"per_layer_config in config.json says of layer {name[:40]!r} what the native engine does not have; "
                "use another engine."
            )
        sizes[number] = own.size("num_key_value_heads", spec.kv_heads), own.size("head_dim", spec.head_dim)
    for kv_heads, _ in sizes:
        if spec.heads % kv_heads:
            raise SpecError(
                f"config.json has {spec.heads} heads over {kv_heads} key-value heads; download the model again."
            )
    return sizes


def _rope(fields: Fields, kind: str, head_dim: int, context_length: int) -> RopeSpec:
    own = rope_by_type(fields).section(kind) or Fields(_GLOBAL_ROPE if kind == _FULL else _LOCAL_ROPE)
    factor = partial_factor(Fields({}), own)
    if factor > 1 or (factor != 1.0 and own.text("rope_type", "default") != "proportional"):
        raise SpecError(
            "partial_rotary_factor in config.json is not what Gemma 4 has a use for; download the model again."
        )
    return rope_of(fields, own, head_dim, context_length, 10_000.0, _KINDS)
