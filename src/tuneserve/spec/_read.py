"""From a ``config.json`` to a spec."""

from collections.abc import Callable, Mapping
from typing import Any

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._gemma import read_gemma2, read_gemma3
from tuneserve.spec._granite import read_granite
from tuneserve.spec._llama import read_llama
from tuneserve.spec._mistral import read_ministral, read_mistral
from tuneserve.spec._moe import read_gpt_oss, read_mixtral, read_qwen3_moe
from tuneserve.spec._phi3 import read_phi3
from tuneserve.spec._qwen import read_qwen2, read_qwen3
from tuneserve.spec._smollm3 import read_smollm3
from tuneserve.spec._spec import ModelSpec

_Reader = Callable[[Fields], ModelSpec]
FAMILIES: Mapping[str, _Reader] = {
    "llama": read_llama,
    "smollm3": read_smollm3,
    "mistral": read_mistral,
    "ministral": read_ministral,
    "qwen2": read_qwen2,
    "qwen3": read_qwen3,
    "gemma2": read_gemma2,
    "gemma3_text": read_gemma3,
    "phi3": read_phi3,
    "granite": read_granite,
    "mixtral": read_mixtral,
    "qwen3_moe": read_qwen3_moe,
    "gpt_oss": read_gpt_oss,
}


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the decoder that a ``config.json`` describes.

    Raises:
        SpecError: the family is not one of :data:`FAMILIES`, the weights are quantised, or a field is malformed or asks
            for something that the decoder does not implement.
    """
    fields = Fields(config)
    family = fields.text("model_type")
    if family not in FAMILIES:
        raise SpecError(
            f"the native engine does not have the {family[:40]!r} family yet, only {', '.join(FAMILIES)}; "
            "export the model and use another engine."
        )
    if "quantization_config" in fields.names():
        raise SpecError("the native engine does not read quantised weights yet; use the 16-bit model.")
    return FAMILIES[family](fields)
