"""A model divided over devices that compute each layer together: tensor parallelism (arXiv:1909.08053).

Attention is divided by heads, a feed-forward layer and each expert by inner elements. Where there are more devices than
key heads, several hold the same one.
"""

from dataclasses import dataclass, fields, replace

from tuneserve.spec._spec import ExpertsSpec, LayerSpec, ModelSpec

_EXPERT_FIELDS = {"count", "per_token", "intermediate_size", "normalised", "biases", "swiglu"}
_LAYER_FIELDS = {"rope", "window", "experts"}
_MODEL_FIELDS = {
    "family", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size", "context_length",
    "per_layer", "norm_eps", "tied", "scale", "activation", "norm_plus_one", "qkv_bias", "output_bias", "mlp_bias",
    "fused", "wrapped", "qk_norm", "sinks", "post_norms", "query_scaling", "softcap", "embedding_scale",
    "residual_scale", "logit_scale", "logit_softcap",
}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """One of the devices that compute a model together: number ``rank`` from 0 of ``size``."""

    rank: int
    size: int

    def of(self, count: int) -> range:
        """Return its part of ``count`` things that ``size`` divides."""
        assert count % self.size == 0
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)


def kv_heads_of(spec: ModelSpec, share: Share) -> range:
    """Return the key heads that a device holds."""
    if spec.kv_heads % share.size == 0:
        return share.of(spec.kv_heads)
    head = share.rank * spec.kv_heads // share.size
    return range(head, head + 1)


def reasons_against_split(spec: ModelSpec, size: int) -> list[str]:
    """Return why ``size`` devices cannot divide a model, nothing where they can.

    What a spec may come to say that is not known here counts against it unless it has the default.
    """
    reasons = []
    if spec.heads % size:
        reasons.append(f"{size} devices do not divide its {spec.heads} attention heads")
    if spec.kv_heads % size and size % spec.kv_heads:
        reasons.append(f"{size} devices neither divide its {spec.kv_heads} key heads nor are a multiple of them")
    inner = {"feed-forward": spec.intermediate_size} if any(one.experts is None for one in spec.per_layer) else {}
    for layer in spec.per_layer:
        reasons += _unknown(layer, _LAYER_FIELDS)
        if layer.experts is not None:
            reasons += _unknown(layer.experts, _EXPERT_FIELDS)
            inner["expert"] = layer.experts.intermediate_size
    reasons += [
        f"{size} devices do not divide its {kind} size {width}" for kind, width in inner.items() if width % size
    ]
    reasons += _unknown(spec, _MODEL_FIELDS)
    return list(dict.fromkeys(reasons))


def split_spec(spec: ModelSpec, size: int) -> ModelSpec:
    """Return what each of ``size`` devices computes, the embedding and the vocabulary whole.

    There must be nothing in :func:`reasons_against_split`.
    """
    assert not reasons_against_split(spec, size)
    layers = []
    for layer in spec.per_layer:
        if (experts := layer.experts) is not None:
            experts = replace(experts, intermediate_size=experts.intermediate_size // size)
        layers.append(replace(layer, experts=experts))
    return replace(
        spec,
        heads=spec.heads // size,
        kv_heads=max(1, spec.kv_heads // size),
        intermediate_size=spec.intermediate_size // size,
        per_layer=tuple(layers),
    )


def _unknown(part: ModelSpec | LayerSpec | ExpertsSpec, known: set[str]) -> list[str]:
    unknown = [field for field in fields(part) if field.name not in known]
    return [f"it has {field.name}" for field in unknown if getattr(part, field.name) != field.default]
