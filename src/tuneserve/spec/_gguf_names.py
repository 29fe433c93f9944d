"""Which tensors of a Hugging Face checkpoint are which tensors of a GGUF file, per family.

GGUF's names are those of llama.cpp (``gguf-py/gguf/constants.py``). What differs beside the names: families that it
rotates in adjacent pairs have the rows of q and k interleaved, Gemma's norms have one added, Conv1D weights are
transposed, and the experts of a layer are stacked into one tensor each for gate, up and down.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tuneserve.errors import SpecError

GGUF_ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "smollm3": "smollm3",
    "granite": "granite",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gpt_oss": "gpt-oss",
}
"""The ``model_type`` of each family that is known here, with its ``general.architecture``."""

Rows = Literal["all", "first half", "second half", "even", "odd"]


@dataclass(frozen=True, slots=True)
class GgufPart:
    """What becomes of (some rows of) one Hugging Face tensor in a GGUF file.

    In this order: the last two dimensions are swapped if ``transposed``; ``rows`` of the second last dimension (of the
    only one, in a bias of experts: the last) are taken; the rotary halves of each head are interleaved if ``heads``
    says whose; one is added if ``plus_one``; the result is the slice ``expert`` of the tensor ``name``, or all of it.
    """

    name: str
    rows: Rows = "all"
    heads: Literal["q", "kv"] | None = None
    expert: int | None = None
    transposed: bool = False
    plus_one: bool = False


_INTERLEAVED = ("llama", "mistral", "mixtral", "smollm3", "granite")
_PLUS_ONE = ("gemma", "gemma2", "gemma3_text")
_TRANSPOSED = {
    "gpt2": ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    "gpt_oss": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
}

_ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_NORMED = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_DENSE = {**_ATTENTION, "post_attention_layernorm": "ffn_norm", **_MLP}
_EXPERTS = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.{expert}.gate_proj": "ffn_gate_exps",
    "mlp.experts.{expert}.up_proj": "ffn_up_exps",
    "mlp.experts.{expert}.down_proj": "ffn_down_exps",
}
_SHARED = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_MIXTRAL = {
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.{expert}.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.{expert}.w3": "ffn_up_exps",
    "block_sparse_moe.experts.{expert}.w2": "ffn_down_exps",
}
_SANDWICH = {
    **_ATTENTION,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    **_MLP,
    "post_feedforward_layernorm": "post_ffw_norm",
}

_LAYER: Mapping[str, Mapping[str, str]] = {
    "llama": _DENSE,
    "mistral": _DENSE,
    "mixtral": {**_ATTENTION, "post_attention_layernorm": "ffn_norm", **_MIXTRAL},
    "smollm3": _DENSE,
    "granite": _DENSE,
    "qwen2": _DENSE,
    "qwen3": {**_DENSE, **_NORMED},
    "qwen2_moe": {**_DENSE, **_EXPERTS, **_SHARED},
    "qwen3_moe": {**_DENSE, **_NORMED, **_EXPERTS},
    "gemma": _DENSE,
    "gemma2": _SANDWICH,
    "gemma3_text": {**_SANDWICH, **_NORMED},
    "phi3": {
        "input_layernorm": "attn_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    "gpt2": {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "gpt_oss": {
        **_ATTENTION,
        "post_attention_layernorm": "post_attention_norm",
        "mlp.router": "ffn_gate_inp",
    },
}
"""Modules of one layer; their ``.weight`` and ``.bias`` keep those suffixes."""

_HALVES: tuple[tuple[str, Rows], ...] = (("ffn_gate_exps.weight", "first half"), ("ffn_up_exps.weight", "second half"))
_WHOLE_TENSORS: Mapping[str, Mapping[str, tuple[tuple[str, Rows], ...]]] = {
    "qwen2_moe": {"mlp.experts.gate_up_proj": _HALVES, "mlp.experts.down_proj": (("ffn_down_exps.weight", "all"),)},
    "qwen3_moe": {"mlp.experts.gate_up_proj": _HALVES, "mlp.experts.down_proj": (("ffn_down_exps.weight", "all"),)},
    "mixtral": {
        "mlp.gate.weight": (("ffn_gate_inp.weight", "all"),),
        "mlp.experts.gate_up_proj": _HALVES,
        "mlp.experts.down_proj": (("ffn_down_exps.weight", "all"),),
    },
    "gpt_oss": {
        "self_attn.sinks": (("attn_sinks.weight", "all"),),
        "mlp.experts.gate_up_proj": (("ffn_gate_exps.weight", "even"), ("ffn_up_exps.weight", "odd")),
        "mlp.experts.gate_up_proj_bias": (("ffn_gate_exps.bias", "even"), ("ffn_up_exps.bias", "odd")),
        "mlp.experts.down_proj": (("ffn_down_exps.weight", "all"),),
        "mlp.experts.down_proj_bias": (("ffn_down_exps.bias", "all"),),
    },
}
"""Tensors of one layer that are no ``.weight`` or ``.bias`` of a module, or a second layout of the same ones."""

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_OUTSIDE_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
_FROM_CONFIGURATION = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_TOWERS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_LAYER_NAME = re.compile(r"(?:model\.layers|transformer\.h)\.(\d{1,4})\.(.+)", re.ASCII)
_EXPERT_NAME = re.compile(r"experts\.(\d{1,5})\.", re.ASCII)
_BLOCK_NAME = re.compile(r"blk\.(\d{1,4})\.(.+)", re.ASCII)


def gguf_parts(family: str, name: str) -> tuple[GgufPart, ...]:
    """Return what the Hugging Face tensor ``name`` becomes; empty for buffers and for the towers of wrappers.

    ``family`` is a key of :data:`GGUF_ARCHITECTURES`; ``name`` may carry the prefix of a multimodal wrapper.

    Raises:
        SpecError: the family has no such tensor.
    """
    if name.endswith(_BUFFERS) or name.startswith(_TOWERS):
        return ()
    plain = _without_wrapper(family, name)
    layer = _LAYER_NAME.fullmatch(plain)
    found = _layer_parts(family, layer[1], layer[2]) if layer else _outside_part(family, plain)
    if not found:
        raise SpecError(
            f"the tensor {name[:100]!r} has no place in a GGUF file of the {family} family; "
            "export the model as merged_16bit and use an engine that reads it."
        )
    return found


def hf_name(family: str, name: str) -> str | None:
    """Return the Hugging Face tensor that (part of) the GGUF tensor ``name`` came from.

    Stacked experts give a name with ``{expert}`` in it, one tensor per expert, except for gpt-oss, which keeps them
    fused; None is a tensor that the configuration alone determines.

    Raises:
        SpecError: the family has no such tensor.
    """
    if name in _FROM_CONFIGURATION:
        return None
    block = _BLOCK_NAME.fullmatch(name)
    stem, _, suffix = (block[2] if block else name).rpartition(".")
    if suffix in ("weight", "bias"):
        outside = _OUTSIDE_GPT2 if family == "gpt2" else _OUTSIDE
        for module, gguf_module in (_LAYER[family] if block else outside).items():
            if gguf_module == stem:
                prefix = f"{'transformer.h' if family == 'gpt2' else 'model.layers'}.{block[1]}." if block else ""
                return f"{prefix}{module}.{suffix}"
    if block:
        for tensor, parts in _WHOLE_TENSORS.get(family, {}).items():
            if any(part == block[2] for part, _ in parts):
                return f"model.layers.{block[1]}.{tensor}"
    raise SpecError(
        f"the GGUF tensor {name[:100]!r} has no place in the {family} family; use the model's original checkpoint."
    )


def _without_wrapper(family: str, name: str) -> str:
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    plain = name.removeprefix("language_model.")
    if family == "gpt2" and not plain.startswith(("transformer.", "lm_head.")):
        return f"transformer.{plain}"
    return plain


def _layer_parts(family: str, layer: str, rest: str) -> tuple[GgufPart, ...]:
    transposed = rest in _TRANSPOSED.get(family, ())
    if whole := _WHOLE_TENSORS.get(family, {}).get(rest):
        return tuple(GgufPart(f"blk.{layer}.{part}", rows, transposed=transposed) for part, rows in whole)
    expert = _EXPERT_NAME.search(rest)
    module, _, suffix = _EXPERT_NAME.sub("experts.{expert}.", rest).rpartition(".")
    target = _LAYER[family].get(module)
    if target is None or suffix not in ("weight", "bias"):
        return ()
    return (
        GgufPart(
            f"blk.{layer}.{target}.{suffix}",
            heads=_heads(family, target),
            expert=int(expert[1]) if expert else None,
            transposed=transposed,
            plus_one=family in _PLUS_ONE and target.endswith("norm"),
        ),
    )


def _heads(family: str, module: str) -> Literal["q", "kv"] | None:
    if family not in _INTERLEAVED:
        return None
    return "q" if module == "attn_q" else "kv" if module == "attn_k" else None


def _outside_part(family: str, name: str) -> tuple[GgufPart, ...]:
    module, _, suffix = name.rpartition(".")
    target = (_OUTSIDE_GPT2 if family == "gpt2" else _OUTSIDE).get(module)
    if target is None or suffix not in ("weight", "bias"):
        return ()
    return (GgufPart(f"{target}.{suffix}", plus_one=family in _PLUS_ONE and target == "output_norm"),)
