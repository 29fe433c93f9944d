"""The names of a checkpoint's tensors, as Hugging Face names them."""

from dataclasses import dataclass, replace

from tuneserve.spec._spec import ExpertsSpec, ModelSpec

EMBEDDING = "model.embed_tokens.weight"
LAYER_EMBEDDING = "model.embed_tokens_per_layer.weight"
LAYER_PROJECTION = "model.per_layer_model_projection"
LAYER_PROJECTION_NORM = "model.per_layer_projection_norm.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class ExpertNames:
    """Where the experts of one layer are in a checkpoint.

    ``router`` is a module. If ``stacked``, ``gate_up`` is one tensor (experts, 2 * inner, hidden) and ``down`` one,
    (experts, hidden, inner), or both with their last dimensions swapped if ``transposed``, and each bias, (experts,
    out), is that name with ``_bias``. If not, they are modules of each expert, with ``{expert}`` for its number; of
    several, the rows are stacked. In the rows of ``interleaved`` weights gate and up alternate. ``shared_gate_up``,
    ``shared_down`` and ``shared_gate`` are modules of the expert that all tokens take, if there is one.
    """

    router: str
    gate_up: tuple[str, ...]
    down: str
    stacked: bool
    transposed: bool = False
    interleaved: bool = False
    shared_gate_up: tuple[str, ...] = ()
    shared_down: str | None = None
    shared_gate: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeltaNetNames:
    """Where what a delta net has beside its projections is: tensors, of which ``norm`` is that of its output."""

    conv: str
    decay: str
    step_bias: str
    norm: str


@dataclass(frozen=True, kw_only=True)
class LayerInputNames:
    """Where a layer's part in :attr:`ModelSpec.layer_input` is: two modules and a norm."""

    gate: str
    projection: str
    norm: str


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """Where one layer's weights are in a checkpoint.

    Linear layers are modules, whose tensors are ``.weight`` and perhaps ``.bias``; of several, the rows are stacked.
    Norms, sinks and the scalar are tensors; what the model lacks is None. ``experts`` take the place of ``gate_up`` and
    ``down``. Of a delta net ``qkv`` has query, key and value in one module, then the output's gate, the rates and the
    decays. Of a layer without keys of its own it is the query alone.
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
    delta_net: DeltaNetNames | None = None
    layer_input: LayerInputNames | None = None
    scalar: str | None = None


_TOWERS = tuple(
    f"{prefix}{tower}."
    for prefix in ("", "model.")
    for tower in ("vision_tower", "multi_modal_projector", "visual", "embed_vision", "audio_tower", "embed_audio")
)
# Layers that guess tokens further ahead, which other engines speculate with.
_GUESSING = "mtp."
_MIXTRAL_EXPERT = "block_sparse_moe.experts.{expert}"
_EXPERT = "mlp.experts.{expert}"


def plain_name(name: str) -> str | None:
    """Return what a tensor of a multimodal checkpoint is called in the text part alone; None if it is not of that."""
    if name.startswith(_TOWERS):
        return None
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("language_model.")


def is_unused(spec: ModelSpec, name: str) -> bool:
    """Say whether a family's checkpoints have a tensor that the decoder, like Transformers', has no use for."""
    if spec.family.startswith("qwen3_5"):
        return name.startswith(_GUESSING)
    layer, found, inside = name.removeprefix("model.layers.").partition(".self_attn.")
    if not found or not (layer.isascii() and layer.isdigit()) or int(layer) >= spec.layers:
        return False
    return spec.layer(int(layer)).keys_from is not None and inside.startswith(("k_", "v_"))


def layer_names(spec: ModelSpec, layer: int, *, stacked: bool = False) -> LayerNames:
    """Return the names of layer number ``layer``; ``stacked`` if the checkpoint has all experts in one tensor."""
    own, prefix = spec.layer(layer), f"model.layers.{layer}"
    mlp = f"{prefix}.mlp"
    attention = f"{prefix}.linear_attn" if own.delta_net else f"{prefix}.self_attn"
    gate_up = ("gate_up_proj",) if spec.fused else ("gate_proj", "up_proj")
    after_attention = f"{prefix}.post_attention_layernorm.weight"
    normed = spec.qk_norm and own.delta_net is None
    return LayerNames(
        attention_norm=f"{prefix}.input_layernorm.weight",
        qkv=tuple(f"{attention}.{name}" for name in qkv_rows(spec, layer)),
        output=f"{attention}.out_proj" if own.delta_net else f"{attention}.o_proj",
        mlp_norm=f"{prefix}.pre_feedforward_layernorm.weight" if spec.post_norms else after_attention,
        gate_up=tuple(f"{mlp}.{name}" for name in gate_up),
        down=f"{mlp}.down_proj",
        q_norm=f"{attention}.q_norm.weight" if normed else None,
        k_norm=f"{attention}.k_norm.weight" if normed and own.keys_from is None else None,
        post_attention_norm=after_attention if spec.post_norms else None,
        post_mlp_norm=f"{prefix}.post_feedforward_layernorm.weight" if spec.post_norms else None,
        sinks=f"{attention}.sinks" if spec.sinks else None,
        experts=_expert_names(spec.family, prefix, stacked, own.experts) if own.experts else None,
        delta_net=_delta_net_names(attention) if own.delta_net else None,
        layer_input=_layer_input_names(prefix) if spec.layer_input else None,
        scalar=f"{prefix}.layer_scalar" if spec.layer_scalars else None,
    )


def qkv_rows(spec: ModelSpec, layer: int) -> dict[str, int]:
    """Return the modules that a layer applies to its input before it mixes tokens, and the rows of each."""
    own = spec.layer(layer)
    if own.delta_net is not None:
        net = own.delta_net
        return {"in_proj_qkv": net.conv_size, "in_proj_z": net.value_size,
                "in_proj_b": net.value_heads, "in_proj_a": net.value_heads}  # fmt: skip
    if spec.fused:
        return {"qkv_proj": spec.qkv_size}
    kv_heads, head_dim = spec.attention_sizes(layer)
    rows = {"q_proj": spec.heads * head_dim * (2 if spec.output_gate else 1)}
    if own.keys_from is None:
        rows["k_proj"] = kv_heads * head_dim
        if not own.keys_are_values:
            rows["v_proj"] = kv_heads * head_dim
    return rows


def _delta_net_names(prefix: str) -> DeltaNetNames:
    return DeltaNetNames(
        conv=f"{prefix}.conv1d.weight",
        decay=f"{prefix}.A_log",
        step_bias=f"{prefix}.dt_bias",
        norm=f"{prefix}.norm.weight",
    )


def _layer_input_names(prefix: str) -> LayerInputNames:
    return LayerInputNames(
        gate=f"{prefix}.per_layer_input_gate",
        projection=f"{prefix}.per_layer_projection",
        norm=f"{prefix}.post_per_layer_input_norm.weight",
    )


def _expert_names(family: str, prefix: str, stacked: bool, experts: ExpertsSpec) -> ExpertNames:
    names = _routed_names(family, prefix, stacked)
    if experts.shared_size is None:
        return names
    shared = f"{prefix}.mlp.shared_expert"
    return replace(
        names,
        shared_gate_up=(f"{shared}.gate_proj", f"{shared}.up_proj"),
        shared_down=f"{shared}.down_proj",
        shared_gate=f"{shared}_gate",
    )


def _routed_names(family: str, prefix: str, stacked: bool) -> ExpertNames:
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
