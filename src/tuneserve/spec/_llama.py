"""Llama 2 and 3, SmolLM2, and whatever else says that it is a Llama."""

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._rope import read_rope
from tuneserve.spec._spec import ModelSpec


def read_llama(fields: Fields) -> ModelSpec:
    """Read a ``LlamaConfig``; absent fields take the defaults that Transformers gives them."""
    fields.require("hidden_act", ("silu",), "silu")
    fields.require("attention_bias", (False,), False)
    fields.require("mlp_bias", (False,), False)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", heads)
    head_dim = fields.size("head_dim", hidden // heads or None)
    if heads % kv_heads:
        raise SpecError(f"config.json has {heads} heads over {kv_heads} key-value heads; download the model again.")
    if head_dim % 2:
        raise SpecError(f"config.json has an odd head_dim, {head_dim}, which cannot be rotated; use another model.")
    theta, scaling = read_rope(fields)
    return ModelSpec(
        family="llama",
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        layers=fields.size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=fields.size("vocab_size"),
        context_length=fields.size("max_position_embeddings", 2048),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=fields.flag("tie_word_embeddings", False),
    )
