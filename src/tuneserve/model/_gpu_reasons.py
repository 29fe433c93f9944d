"""What the decoder on a GPU cannot run."""

from dataclasses import fields

import torch

from tuneserve.model._deferred import DeferredLinear
from tuneserve.model._linear import DenseLinear
from tuneserve.model._weights import Weights
from tuneserve.spec import ExpertsSpec, LayerSpec, ModelSpec

# A head has to fit in the registers of a few warps.
_MOST_HEAD_DIM = 256
# The router compares the scores of all in one program.
_MOST_EXPERTS = 1024
_LAYER_FIELDS = {"rope", "window", "experts"}
_MODEL_FIELDS = {
    "family", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size", "context_length",
    "per_layer", "norm_eps", "tied", "scale", "activation", "norm_plus_one", "qkv_bias", "output_bias", "mlp_bias",
    "fused", "wrapped", "qk_norm", "sinks", "post_norms", "query_scaling", "softcap", "embedding_scale",
    "residual_scale", "logit_scale", "logit_softcap",
}  # fmt: skip


def gpu_reasons_against(spec: ModelSpec, weights: Weights, *, quantised: bool = False) -> list[str]:
    """Return why the kernels cannot run a model, nothing where they can; ``quantised``: in 4 or 8 bits of their own.

    What a spec may come to say that is not known here counts against it unless it has the default.
    """
    reasons = []
    if spec.head_dim % 2 or spec.head_dim > _MOST_HEAD_DIM:
        reasons.append(f"head_dim is {spec.head_dim}, not an even number up to {_MOST_HEAD_DIM}")
    if not 1e-3 <= spec.residual_scale <= 1e3:
        reasons.append(f"residual_scale is {spec.residual_scale}, not between 0.001 and 1000")
    elif spec.residual_scale < 1 and weights.embedding.dtype == torch.float16:
        reasons.append("it scales what is added to residuals, which are kept without that scale, beyond float16")
    reasons += _unknown(spec, _MODEL_FIELDS)
    for layer in spec.per_layer:
        reasons += _unknown(layer, _LAYER_FIELDS)
        if layer.experts is not None:
            reasons += _against_experts(layer.experts, spec.post_norms, quantised=quantised)
    linears = [weights.head]
    for own in weights.layers:
        linears += [one for one in (own.qkv, own.output, own.gate_up, own.down) if one is not None]
    kinds = [type(one).__name__ for one in linears if not isinstance(one, DenseLinear | DeferredLinear)]
    reasons += [f"its weights are {kind}" for kind in kinds]
    if quantised:
        widths = {"hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size}
        widths["heads times head_dim"] = spec.q_size
        reasons += [f"{name} is {width}, not a multiple of 64" for name, width in widths.items() if width % 64]
        if weights.embedding.is_cuda and weights.embedding.dtype != torch.bfloat16:
            reasons.append("it is not in bfloat16")
    return list(dict.fromkeys(reasons))


def _against_experts(experts: ExpertsSpec, post_norms: bool, *, quantised: bool) -> list[str]:
    reasons = []
    if experts.count > _MOST_EXPERTS:
        reasons.append(f"a layer has {experts.count} experts, more than {_MOST_EXPERTS}")
    if experts.shared_size is not None:
        reasons.append("it has an expert that all tokens take")
    if post_norms:
        reasons.append("it has norms after experts")
    if quantised:
        reasons.append("its experts are not quantised when they are loaded")
    return reasons


def _unknown(part: ModelSpec | LayerSpec, known: set[str]) -> list[str]:
    unknown = [field for field in fields(part) if field.name not in known]
    return [f"it has {field.name}" for field in unknown if getattr(part, field.name) != field.default]
