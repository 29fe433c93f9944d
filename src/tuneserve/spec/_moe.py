"""Mixtures of experts: Mixtral (arXiv:2401.04088), Qwen 3 MoE (arXiv:2505.09388) and gpt-oss (arXiv:2508.10925)."""

from dataclasses import replace
from functools import partial

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._plain import read_plain, read_windows, windowed
from tuneserve.spec._rope import read_rope
from tuneserve.spec._spec import ClampedSwiglu, ExpertsSpec, LayerSpec, ModelSpec

# Half a million tensors and more are a mistake or an attack; the largest models have some twenty thousand experts.
_MAX_EXPERTS = 1 << 16
_GPT_OSS_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def read_mixtral(fields: Fields) -> ModelSpec:
    """Read a ``MixtralConfig``: experts in every layer."""
    rope = partial(read_rope, default_theta=1_000_000.0)
    spec = read_plain(fields, kv_heads=8, context_length=131072, norm_eps=1e-5, rope=rope)
    experts = read_experts(fields, spec, "num_local_experts", (8, 2), spec.intermediate_size, normalised=True)
    layers = windowed(fields, spec, fields.optional_size("sliding_window", None))
    return replace(spec, per_layer=_with(layers, experts, [True] * spec.layers))


def read_qwen3_moe(fields: Fields) -> ModelSpec:
    """Read a ``Qwen3MoeConfig``: experts in the layers that neither ``mlp_only_layers`` nor the step leaves out."""
    spec = read_plain(fields, kv_heads=4, context_length=32768)
    count = "num_local_experts" if "num_local_experts" in fields.names() else "num_experts"
    normalised = fields.flag("norm_topk_prob", False)
    size = fields.size("moe_intermediate_size", 768)
    experts = read_experts(fields, spec, count, (128, 8), size, normalised=normalised)
    step, dense = fields.size("decoder_sparse_step", 1), fields.indices("mlp_only_layers", spec.layers)
    sparse = [index not in dense and (index + 1) % step == 0 for index in range(spec.layers)]
    window = fields.optional_size("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    layers = windowed(fields, spec, window)
    bias = fields.flag("attention_bias", False)
    return replace(spec, per_layer=_with(layers, experts, sparse), qk_norm=True, qkv_bias=bias, output_bias=bias)


def read_gpt_oss(fields: Fields) -> ModelSpec:
    """Read a ``GptOssConfig``: sinks, biases, and a window in every other layer, the first of them too."""
    fields.require("hidden_act", ("silu",), "silu")
    if not fields.names() & {"rope_parameters", "rope_scaling"}:
        fields = fields.with_field("rope_parameters", _GPT_OSS_ROPE)
    rope = partial(read_rope, default_theta=150_000.0)
    spec = read_plain(fields, kv_heads=8, head_dim=64, context_length=131072, norm_eps=1e-5, rope=rope)
    swiglu = ClampedSwiglu(alpha=fields.number("swiglu_alpha", 1.702), limit=fields.number("swiglu_limit", 7.0))
    experts = read_experts(fields, spec, "num_local_experts", (128, 4), spec.intermediate_size, normalised=True)
    experts = replace(experts, biases=True, swiglu=swiglu)
    window = fields.optional_size("sliding_window", 128)
    layers = read_windows(fields, spec, window, [index % 2 == 0 for index in range(spec.layers)])
    bias = fields.flag("attention_bias", True)
    return replace(
        spec,
        per_layer=_with(layers, experts, [True] * spec.layers),
        sinks=True,
        qkv_bias=bias,
        output_bias=bias,
    )


def read_experts(
    fields: Fields, spec: ModelSpec, count_field: str, defaults: tuple[int, int], size: int, *, normalised: bool
) -> ExpertsSpec:
    count = fields.size(count_field, defaults[0])
    per_token = fields.size("num_experts_per_tok", defaults[1])
    if per_token > count or count * spec.layers > _MAX_EXPERTS:
        raise SpecError(
            f"config.json has {count} experts in each of {spec.layers} layers and {per_token} of them for a token, "
            "which cannot be; download the model again."
        )
    return ExpertsSpec(count=count, per_token=per_token, intermediate_size=size, normalised=normalised)


def _with(layers: tuple[LayerSpec, ...], experts: ExpertsSpec, sparse: list[bool]) -> tuple[LayerSpec, ...]:
    return tuple(replace(layer, experts=experts) if has else layer for layer, has in zip(layers, sparse, strict=True))
