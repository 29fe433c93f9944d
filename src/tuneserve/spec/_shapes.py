"""The shapes of a checkpoint's tensors."""

from tuneserve.spec._spec import DeltaNetSpec, ExpertsSpec, ModelSpec
from tuneserve.spec._tensors import (
    EMBEDDING,
    HEAD,
    LAYER_EMBEDDING,
    LAYER_PROJECTION,
    LAYER_PROJECTION_NORM,
    NORM,
    DeltaNetNames,
    ExpertNames,
    LayerNames,
    layer_names,
    qkv_rows,
)


def tensor_shapes(spec: ModelSpec, *, stacked: bool = False) -> dict[str, tuple[int, ...]]:
    """Return every tensor that the decoder needs; linear weights are (out, in), biases (out).

    ``stacked`` is for checkpoints that have all experts of a layer in one tensor; see :class:`ExpertNames`.
    """
    hidden = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden), NORM: (hidden,)}
    if not spec.tied:
        shapes[HEAD] = (spec.vocab_size, hidden)
    if spec.layer_input is not None:
        size = spec.layers * spec.layer_input.size
        shapes[LAYER_EMBEDDING] = (spec.layer_input.vocab_size, size)
        shapes |= _linear(LAYER_PROJECTION, size, hidden, bias=False)
        shapes[LAYER_PROJECTION_NORM] = (spec.layer_input.size,)
    for layer in range(spec.layers):
        shapes |= _layer_shapes(spec, layer, layer_names(spec, layer, stacked=stacked))
    return shapes


def _layer_shapes(spec: ModelSpec, layer: int, names: LayerNames) -> dict[str, tuple[int, ...]]:
    hidden, own = spec.hidden_size, spec.layer(layer)
    inter = own.intermediate_size or spec.intermediate_size
    _, head_dim = spec.attention_sizes(layer)
    gate_up_rows = (2 * inter,) if spec.fused else (inter, inter)
    shapes: dict[str, tuple[int, ...]] = {names.attention_norm: (hidden,)}
    for name, rows in zip(names.qkv, qkv_rows(spec, layer).values(), strict=True):
        shapes |= _linear(name, rows, hidden, spec.qkv_bias and own.delta_net is None)
    if own.delta_net is not None and names.delta_net is not None:
        shapes |= _delta_net_shapes(own.delta_net, names.delta_net)
        shapes |= _linear(names.output, hidden, own.delta_net.value_size, bias=False)
    else:
        shapes |= _linear(names.output, hidden, spec.heads * head_dim, spec.output_bias)
    shapes |= {name: (head_dim,) for name in (names.q_norm, names.k_norm) if name}
    shapes |= {names.sinks: (spec.heads,)} if names.sinks else {}
    shapes[names.mlp_norm] = (hidden,)
    shapes |= {name: (hidden,) for name in (names.post_attention_norm, names.post_mlp_norm) if name}
    shapes |= {names.scalar: (1,)} if names.scalar else {}
    if names.layer_input is not None and spec.layer_input is not None:
        shapes |= _linear(names.layer_input.gate, spec.layer_input.size, hidden, bias=False)
        shapes |= _linear(names.layer_input.projection, hidden, spec.layer_input.size, bias=False)
        shapes[names.layer_input.norm] = (hidden,)
    if own.experts is not None and names.experts is not None:
        return shapes | _expert_shapes(hidden, names.experts, own.experts)
    for name, rows in zip(names.gate_up, gate_up_rows, strict=True):
        shapes |= _linear(name, rows, hidden, spec.mlp_bias)
    return shapes | _linear(names.down, hidden, inter, spec.mlp_bias)


def _delta_net_shapes(net: DeltaNetSpec, names: DeltaNetNames) -> dict[str, tuple[int, ...]]:
    return {
        names.conv: (net.conv_size, 1, net.kernel),
        names.decay: (net.value_heads,),
        names.step_bias: (net.value_heads,),
        names.norm: (net.value_dim,),
    }


def _expert_shapes(hidden: int, names: ExpertNames, experts: ExpertsSpec) -> dict[str, tuple[int, ...]]:
    count, inter = experts.count, experts.intermediate_size
    shapes = _linear(names.router, count, hidden, experts.biases)
    if experts.shared_size is not None and names.shared_down is not None and names.shared_gate is not None:
        for module in names.shared_gate_up:
            shapes |= _linear(module, experts.shared_size, hidden, bias=False)
        shapes |= _linear(names.shared_down, hidden, experts.shared_size, bias=False)
        shapes |= _linear(names.shared_gate, 1, hidden, bias=False)
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
