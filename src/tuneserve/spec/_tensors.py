"""The names and shapes of a checkpoint's tensors, as Hugging Face names them."""

from dataclasses import dataclass

from tuneserve.spec._spec import ExpertsSpec, ModelSpec

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class ExpertNames:
    """Where the experts of one layer are in a checkpoint.

    ``router`` is a module. If ``stacked``, ``gate_up`` is one tensor (experts, 2 * inner, hidden) and ``down`` one,
    (experts, hidden, inner), or both with their last dimensions swapped if ``transposed``, and each bias, (experts,
    out), is that name with ``_bias``. If not, they are modules of each expert, with ``{expert}`` for its number; of
    several, the rows are stacked. In the rows of ``interleaved`` weights gate and up alternate.
    """

    router: str
    gate_up: tuple[str, ...]
    down: str
    stacked: bool
    transposed: bool = False
    interleaved: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """Where one layer's weights are in a checkpoint.

    Linear layers are modules, whose tensors are ``.weight`` and perhaps ``.bias``; of several, the rows are stacked.
    Norms and sinks are tensors; what the model lacks is None. ``experts`` take the place of ``gate_up`` and ``down``.
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
    sinks: str | None = None
    experts: ExpertNames | None = None


_TOWERS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_MIXTRAL_EXPERT = "block_sparse_moe.experts.{expert}"
_EXPERT = "mlp.experts.{expert}"


def plain_name(name: str) -> str | None:
    """Return what a tensor of a multimodal checkpoint is called in the text part alone; None if it is not of that."""
    if name.startswith(_TOWERS):
        return None
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("language_model.")


def layer_names(spec: ModelSpec, layer: int, *, stacked: bool = False) -> LayerNames:
    """Return the names of layer number ``layer``; ``stacked`` if the checkpoint has all experts in one tensor."""
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
        sinks=f"{attention}.sinks" if spec.sinks else None,
        experts=_expert_names(spec.family, prefix, stacked) if spec.layer(layer).experts else None,
    )


def _expert_names(family: str, prefix: str, stacked: bool) -> ExpertNames:
    if stacked or family == "gpt_oss":
        own = family == "gpt_oss"
        return ExpertNames(
            router=f"{prefix}.mlp.router" if own else f"{prefix}.mlp.gate",
            gate_up=(f"{prefix}.mlp.experts.gate_up_proj",),
            down=f"{prefix}.mlp.experts.down_proj",
            stacked=True,
            transposed=own,
            interleaved=own,
        )
    if family == "mixtral":
        router, expert, parts, down = "block_sparse_moe.gate", _MIXTRAL_EXPERT, ("w1", "w3"), "w2"
    else:
        router, expert, parts, down = "mlp.gate", _EXPERT, ("gate_proj", "up_proj"), "down_proj"
    return ExpertNames(
        router=f"{prefix}.{router}",
        gate_up=tuple(f"{prefix}.{expert}.{part}" for part in parts),
        down=f"{prefix}.{expert}.{down}",
        stacked=False,
    )


def tensor_shapes(spec: ModelSpec, *, stacked: bool = False) -> dict[str, tuple[int, ...]]:
    """Return every tensor that the decoder needs; linear weights are (out, in), biases (out).

    ``stacked`` is for checkpoints that have all experts of a layer in one tensor; see :class:`ExpertNames`.
    """
    hidden = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden), NORM: (hidden,)}
    if not spec.tied:
        shapes[HEAD] = (spec.vocab_size, hidden)
    for layer in range(spec.layers):
        shapes |= _layer_shapes(spec, layer_names(spec, layer, stacked=stacked), spec.layer(layer).experts)
    return shapes


def _layer_shapes(spec: ModelSpec, names: LayerNames, experts: ExpertsSpec | None) -> dict[str, tuple[int, ...]]:
    hidden, inter = spec.hidden_size, spec.intermediate_size
    qkv_rows = (spec.qkv_size,) if spec.fused else (spec.q_size, spec.kv_size, spec.kv_size)
    gate_up_rows = (2 * inter,) if spec.fused else (inter, inter)
    shapes: dict[str, tuple[int, ...]] = {names.attention_norm: (hidden,)}
    for name, rows in zip(names.qkv, qkv_rows, strict=True):
        shapes |= _linear(name, rows, hidden, spec.qkv_bias)
    shapes |= _linear(names.output, hidden, spec.q_size, spec.output_bias)
    shapes |= {name: (spec.head_dim,) for name in (names.q_norm, names.k_norm) if name}
    shapes |= {names.sinks: (spec.heads,)} if names.sinks else {}
    shapes[names.mlp_norm] = (hidden,)
    shapes |= {name: (hidden,) for name in (names.post_attention_norm, names.post_mlp_norm) if name}
    if experts is not None and names.experts is not None:
        return shapes | _expert_shapes(hidden, names.experts, experts)
    for name, rows in zip(names.gate_up, gate_up_rows, strict=True):
        shapes |= _linear(name, rows, hidden, spec.mlp_bias)
    return shapes | _linear(names.down, hidden, inter, spec.mlp_bias)


def _expert_shapes(hidden: int, names: ExpertNames, experts: ExpertsSpec) -> dict[str, tuple[int, ...]]:
    count, inter = experts.count, experts.intermediate_size
    shapes = _linear(names.router, count, hidden, experts.biases)
    if names.stacked:
        for name, rows, columns in ((names.gate_up[0], 2 * inter, hidden), (names.down, hidden, inter)):
            shapes[name] = (count, columns, rows) if names.transposed else (count, rows, columns)
            shapes |= {f"{name}_bias": (count, rows)} if experts.biases else {}
        return shapes
    for expert in range(count):
        for module in names.gate_up:
            shapes |= _linear(module.format(expert=expert), inter, hidden, experts.biases)
        shapes |= _linear(names.down.format(expert=expert), hidden, inter, experts.biases)
    return shapes


def _linear(module: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{module}.weight": (rows, columns)}
    return shapes | {f"{module}.bias": (rows,)} if bias else shapes
