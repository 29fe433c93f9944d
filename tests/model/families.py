"""Tiny random models of each family: what its configuration says beyond the sizes that all of them share."""

from typing import Any

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ALTERNATING = ["sliding_attention", "full_attention"] * 2
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 3.0, 7.0],
}  # fmt: skip
# What a delta net reads can be close to nothing, and the norm after it would make its rounding large.
DELTA_NET: dict[str, Any] = {
    "rms_norm_eps": 1e-2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 12,
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    "head_dim": 16, "global_head_dim": 24, "sliding_window": 9, "layer_types": ALTERNATING,
    "hidden_size_per_layer_input": 0, "final_logit_softcapping": 3.0,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama yarn mscale": ("llama", {"rope_parameters": {**YARN, "mscale": 1.3, "mscale_all_dim": 0.7}}),
    "llama yarn whole": ("llama", {"rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.2}}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", {}),
    "smollm3 window": (
        "smollm3", {"no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True, "sliding_window": 7},
    ),
    "mistral": ("mistral", {"sliding_window": 9}),
    "mistral 0.3": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "ministral": ("ministral", {"head_dim": 8, "sliding_window": 9, "layer_types": ALTERNATING}),
    "ministral3": (
        "ministral3", {
            "head_dim": 8, "sliding_window": 9,
            "rope_parameters": {**YARN, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.4},
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 bias": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2", {
            "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text", {
            "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9, "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi3": ("phi3", {"sliding_window": 9}),
    "phi3 longrope": (
        "phi3", {
            "num_attention_heads": 4, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32,
            "rope_parameters": LONGROPE,
        },
    ),
    "granite": (
        "granite", {
            "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625,
            "logits_scaling": 8.0, "attention_bias": True, "tie_word_embeddings": True,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 9}),
    "qwen3_moe": (
        "qwen3_moe", {
            "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
            "norm_topk_prob": False, "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe normalised": (
        "qwen3_moe", {
            "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
            "norm_topk_prob": True, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 9,
        },
    ),
    "gpt_oss": (
        "gpt_oss", {
            "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 9, "swiglu_limit": 1.0,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "qwen3_5": ("qwen3_5_text", DELTA_NET),
    "qwen3_5 kernel": (
        "qwen3_5_text", {
            **DELTA_NET, "linear_conv_kernel_dim": 2, "linear_num_value_heads": 2, "attention_bias": True,
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
            "tie_word_embeddings": True, "rope_parameters": {**YARN, "partial_rotary_factor": 0.5},
        },
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe_text", {
            **DELTA_NET, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "gemma4": ("gemma4_text", GEMMA4),
    "gemma4 shared": (
        "gemma4_text", {
            **GEMMA4, "num_hidden_layers": 6, "layer_types": ALTERNATING + ALTERNATING[:2], "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96,
        },
    ),
    "gemma4 equal": (
        "gemma4_text", {
            **GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": None,
            "attention_bias": True, "rope_parameters": {
                "full_attention": {
                    "rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 300.0, "factor": 2.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}  # fmt: skip

_PATCHES: dict[str, Any] = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "num_position_embeddings": 16,
}  # fmt: skip
WRAPPERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "gemma3", {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        }, {"mm_tokens_per_image": 4},
    ),
    "qwen3_5": ("qwen3_5", _PATCHES, {}),
    "qwen3_5_moe": ("qwen3_5_moe", _PATCHES, {}),
    "gemma4": (
        "gemma4 shared", {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4,
        }, {"audio_config": None},
    ),
}  # fmt: skip
"""Multimodal models: which of :data:`FAMILIES` their text part is, then their vision tower and what is beside both."""
