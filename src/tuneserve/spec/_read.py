"""From a ``config.json`` to a spec."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tuneserve.errors import SpecError, UnsupportedModelError
from tuneserve.spec._fields import Fields
from tuneserve.spec._gemma import read_gemma2, read_gemma3
from tuneserve.spec._gemma4 import read_gemma4
from tuneserve.spec._granite import read_granite
from tuneserve.spec._llama import read_llama
from tuneserve.spec._mistral import read_ministral, read_ministral3, read_mistral
from tuneserve.spec._moe import read_gpt_oss, read_mixtral, read_qwen3_moe
from tuneserve.spec._phi3 import read_phi3
from tuneserve.spec._qwen import read_qwen2, read_qwen3
from tuneserve.spec._qwen3_5 import read_qwen3_5, read_qwen3_5_moe
from tuneserve.spec._smollm3 import read_smollm3
from tuneserve.spec._spec import ModelSpec

_Reader = Callable[[Fields], ModelSpec]
FAMILIES: Mapping[str, _Reader] = {
    "llama": read_llama,
    "smollm3": read_smollm3,
    "mistral": read_mistral,
    "ministral": read_ministral,
    "ministral3": read_ministral3,
    "qwen2": read_qwen2,
    "qwen3": read_qwen3,
    "gemma2": read_gemma2,
    "gemma3_text": read_gemma3,
    "phi3": read_phi3,
    "granite": read_granite,
    "mixtral": read_mixtral,
    "qwen3_moe": read_qwen3_moe,
    "gpt_oss": read_gpt_oss,
    "qwen3_5_text": read_qwen3_5,
    "qwen3_5_moe_text": read_qwen3_5_moe,
    "gemma4_text": read_gemma4,
}

WRAPPERS: Mapping[str, bool] = {
    "gemma3": True,
    "mistral3": True,
    "qwen3_5": False,
    "qwen3_5_moe": False,
    "gemma4": True,
}
"""Multimodal models whose text part is one of :data:`FAMILIES`, and whether their head is tied unless they say."""


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the decoder that a ``config.json`` describes; of a multimodal model, its text part.

    Raises:
        UnsupportedModelError: the family is not one of :data:`FAMILIES`, or a field asks for something that the decoder
            does not compute.
        SpecError: the weights are quantised, or a field is malformed.
    """
    fields = Fields(config)
    if "quantization_config" in fields.names():
        raise SpecError("the native engine does not read quantised weights yet; use the 16-bit model.")
    family = fields.text("model_type")
    if family not in WRAPPERS:
        return _family(fields, family)
    text = fields.section("text_config")
    if text is None:
        raise SpecError("config.json lacks text_config; download or save the model again.")
    tied = fields.flag("tie_word_embeddings", text.flag("tie_word_embeddings", WRAPPERS[family]))
    text = text.with_field("tie_word_embeddings", tied)
    return replace(_family(text, text.text("model_type")), wrapped=True)


def _family(fields: Fields, family: str) -> ModelSpec:
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"the native decoder does not have the {family[:40]!r} family; it has "
            f"{', '.join(FAMILIES)}, so export the model and use another engine."
        )
    return FAMILIES[family](fields)
