"""What families have in common: a Llama, from which each of them says how it differs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tuneserve.errors import SpecError, UnsupportedModelError
from tuneserve.spec._fields import Fields
from tuneserve.spec._positions import RopeSpec
from tuneserve.spec._rope import read_rope
from tuneserve.spec._spec import Activation, LayerSpec, ModelSpec

_MAX_LAYERS = 4096
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_plain(
    fields: Fields,
    *,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab_size: int | None = None,
    context_length: int,
    norm_eps: float = 1e-6,
    tied: bool = False,
    rope: Callable[[Fields, int, int], RopeSpec] = read_rope,
    activation_field: str = "hidden_act",
    activation: str = "silu",
) -> ModelSpec:
    """Read a decoder like Llama's; the defaults are those that Transformers gives the family's absent fields.

    Every layer sees all tokens, and has the positions that ``rope`` reads for a head_dim and a context length.

    Raises:
        SpecError: a field is malformed or asks for something that the decoder does not implement.
    """
    hidden = fields.size("hidden_size")
    heads = fields.size("num_attention_heads", *() if heads is None else (heads,))
    layers = fields.size("num_hidden_layers", most=_MAX_LAYERS)
    context = fields.size("max_position_embeddings", context_length)
    default_kv = heads if kv_heads is None or fields.is_null("num_key_value_heads") else kv_heads
    kv_heads = fields.size("num_key_value_heads", default_kv)
    if heads % kv_heads:
        raise SpecError(f"config.json has {heads} heads over {kv_heads} key-value heads; download the model again.")
    default_dim = hidden // heads if head_dim is None or fields.is_null("head_dim") else head_dim
    head_dim = fields.size("head_dim", default_dim or None)
    return ModelSpec(
        family=fields.text("model_type"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=fields.size("vocab_size", *() if vocab_size is None else (vocab_size,)),
        context_length=context,
        per_layer=(LayerSpec(rope=rope(fields, head_dim, context)),) * layers,
        norm_eps=fields.number("rms_norm_eps", norm_eps),
        tied=fields.flag("tie_word_embeddings", tied),
        scale=head_dim**-0.5,
        activation=fields.choice(activation_field, _ACTIVATIONS, activation),
    )


def windowed(fields: Fields, spec: ModelSpec, window: int | None) -> tuple[LayerSpec, ...]:
    """Return the layers, all of them with ``window``; one as long as the context is none.

    Raises:
        SpecError: there are ``layer_types``, which the family does not have.
    """
    if "layer_types" in fields.names():
        raise SpecError(
            f"config.json has layer_types, which {spec.family} does not have; "
            "correct its model_type, or take layer_types out."
        )
    narrowed = None if window is None or window >= spec.context_length else window
    return tuple(replace(layer, window=narrowed) for layer in spec.per_layer)


def read_windows(
    fields: Fields, spec: ModelSpec, window: int | None, default: Sequence[bool], rope: RopeSpec | None = None
) -> tuple[LayerSpec, ...]:
    """Return the layers, with ``window`` where ``layer_types`` says so, or by ``default`` where that is absent.

    Layers with a window have the positions ``rope`` unless it is None. A window as long as the context is none.

    Raises:
        SpecError: a type of layer that the decoder does not implement, or a window of no length.
    """
    types = fields.texts("layer_types", spec.layers)
    for kind in types or ():
        if kind not in ("sliding_attention", "full_attention"):
            raise UnsupportedModelError(
                f"the layer type {kind[:40]!r} is not in the native engine; use another engine."
            )
    slides = default if types is None else [kind == "sliding_attention" for kind in types]
    if window is None and any(slides):
        raise SpecError("config.json has layers with a sliding window and no length of it; download the model again.")
    narrowed = None if window is None or window >= spec.context_length else window
    pairs = zip(spec.per_layer, slides, strict=True)
    return tuple(
        replace(layer, window=narrowed, rope=rope or layer.rope) if narrow else layer for layer, narrow in pairs
    )
