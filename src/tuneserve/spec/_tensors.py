"""The names and shapes of a checkpoint's tensors, as Hugging Face names them."""

from dataclasses import dataclass

from tuneserve.spec._spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class LayerNames:
    """The tensors of one layer."""

    attention_norm: str
    q: str
    k: str
    v: str
    o: str
    mlp_norm: str
    gate: str
    up: str
    down: str


def layer_names(layer: int) -> LayerNames:
    """Return the names of layer number ``layer``."""
    prefix = f"model.layers.{layer}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    return LayerNames(
        attention_norm=f"{prefix}.input_layernorm.weight",
        q=f"{attention}.q_proj.weight",
        k=f"{attention}.k_proj.weight",
        v=f"{attention}.v_proj.weight",
        o=f"{attention}.o_proj.weight",
        mlp_norm=f"{prefix}.post_attention_layernorm.weight",
        gate=f"{mlp}.gate_proj.weight",
        up=f"{mlp}.up_proj.weight",
        down=f"{mlp}.down_proj.weight",
    )


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return every tensor that the decoder needs; linear weights are (out, in)."""
    hidden, inter = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden), NORM: (hidden,)}
    if not spec.tied:
        shapes[HEAD] = (spec.vocab_size, hidden)
    for layer in range(spec.layers):
        names = layer_names(layer)
        shapes |= {
            names.attention_norm: (hidden,),
            names.q: (queries, hidden),
            names.k: (keys, hidden),
            names.v: (keys, hidden),
            names.o: (hidden, queries),
            names.mlp_norm: (hidden,),
            names.gate: (inter, hidden),
            names.up: (inter, hidden),
            names.down: (hidden, inter),
        }
    return shapes
