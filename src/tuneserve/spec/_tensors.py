"""The names and shapes of a checkpoint's tensors, as Hugging Face names them."""

from dataclasses import dataclass

from tuneserve.spec._spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """Where one layer's weights are in a checkpoint.

    Linear layers are modules, whose tensors are ``.weight`` and perhaps ``.bias``; of several, the rows are stacked.
    Norms are tensors; one that the model lacks is None.
    """

    attention_norm: str
    qkv: tuple[str, ...]
    output: str
    mlp_norm: str
    gate_up: tuple[str, ...]
    down: str
    q_norm: str | None = None
    k_norm: str | None = None
    post_attention_norm: str | None = None
    post_mlp_norm: str | None = None


def layer_names(spec: ModelSpec, layer: int) -> LayerNames:
    """Return the names of layer number ``layer``."""
    prefix = f"model.layers.{layer}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qkv = ("qkv_proj",) if spec.fused else ("q_proj", "k_proj", "v_proj")
    gate_up = ("gate_up_proj",) if spec.fused else ("gate_proj", "up_proj")
    after_attention = f"{prefix}.post_attention_layernorm.weight"
    return LayerNames(
        attention_norm=f"{prefix}.input_layernorm.weight",
        qkv=tuple(f"{attention}.{name}" for name in qkv),
        output=f"{attention}.o_proj",
        mlp_norm=f"{prefix}.pre_feedforward_layernorm.weight" if spec.post_norms else after_attention,
        gate_up=tuple(f"{mlp}.{name}" for name in gate_up),
        down=f"{mlp}.down_proj",
        q_norm=f"{attention}.q_norm.weight" if spec.qk_norm else None,
        k_norm=f"{attention}.k_norm.weight" if spec.qk_norm else None,
        post_attention_norm=after_attention if spec.post_norms else None,
        post_mlp_norm=f"{prefix}.post_feedforward_layernorm.weight" if spec.post_norms else None,
    )


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return every tensor that the decoder needs; linear weights are (out, in), biases (out)."""
    hidden = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden), NORM: (hidden,)}
    if not spec.tied:
        shapes[HEAD] = (spec.vocab_size, hidden)
    for layer in range(spec.layers):
        shapes |= _layer_shapes(spec, layer_names(spec, layer))
    return shapes


def _layer_shapes(spec: ModelSpec, names: LayerNames) -> dict[str, tuple[int, ...]]:
    hidden, inter = spec.hidden_size, spec.intermediate_size
    qkv_rows = (spec.qkv_size,) if spec.fused else (spec.q_size, spec.kv_size, spec.kv_size)
    gate_up_rows = (2 * inter,) if spec.fused else (inter, inter)
    shapes: dict[str, tuple[int, ...]] = {names.attention_norm: (hidden,)}
    for name, rows in zip(names.qkv, qkv_rows, strict=True):
        shapes |= _linear(name, rows, hidden, spec.qkv_bias)
    shapes |= _linear(names.output, hidden, spec.q_size, spec.output_bias)
    shapes |= {name: (spec.head_dim,) for name in (names.q_norm, names.k_norm) if name}
    shapes[names.mlp_norm] = (hidden,)
    shapes |= {name: (hidden,) for name in (names.post_attention_norm, names.post_mlp_norm) if name}
    for name, rows in zip(names.gate_up, gate_up_rows, strict=True):
        shapes |= _linear(name, rows, hidden, spec.mlp_bias)
    return shapes | _linear(names.down, hidden, inter, spec.mlp_bias)


def _linear(module: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{module}.weight": (rows, columns)}
    return shapes | {f"{module}.bias": (rows,)} if bias else shapes
