"""SmolLM3: a Llama of which every fourth layer knows no positions (arXiv:2501.18795)."""

from dataclasses import replace
from functools import partial

from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, read_windows
from tuneserve.spec._rope import read_rope
from tuneserve.spec._spec import ModelSpec


def read_smollm3(fields: Fields) -> ModelSpec:
    """Read a ``SmolLM3Config``."""
    rope = partial(read_rope, default_theta=2_000_000.0)
    spec = read_plain(fields, kv_heads=4, context_length=32768, tied=True, rope=rope)
    interval = fields.size("no_rope_layer_interval", 4)
    # The name says the opposite of what it holds: 1 is a layer with positions.
    rotated = fields.bits("no_rope_layers", spec.layers)
    if rotated is None:
        rotated = [(index + 1) % interval != 0 for index in range(spec.layers)]
    window = fields.optional_size("sliding_window", None) if fields.flag("use_sliding_window", False) else None
    layers = read_windows(fields, spec, window, [window is not None and not rotates for rotates in rotated])
    bias = fields.flag("attention_bias", False)
    return replace(
        spec,
        per_layer=tuple(
            layer if rotates else replace(layer, rope=None) for layer, rotates in zip(layers, rotated, strict=True)
        ),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
