"""An adapter as a GGUF file that llama.cpp (``--lora``) and Ollama (``ADAPTER``) apply to the base's GGUF.

Layout: llama.cpp's src/llama-adapter.cpp and convert_lora_to_gguf.py. llama.cpp scales B @ A by alpha over the rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.adapters import LoraAdapter
from tuneserve.errors import AdapterError, SpecError
from tuneserve.spec import GGUF_ARCHITECTURES, Fields, GgufPart, gguf_parts

if TYPE_CHECKING:
    import torch

_INSTEAD = "export gguf:TYPE instead, which holds the merged model"


def write_gguf_lora(adapter: LoraAdapter, config: Mapping[str, Any], path: Path) -> None:
    """Write ``adapter`` as the GGUF file ``path``, in float32.

    Scalings other than alpha over the rank (rsLoRA, patterns of alphas) go into B. Rows of B follow those of llama.cpp's
    q and k.

    Args:
        adapter: LoRA on linear layers.
        config: the base's ``config.json``.
        path: a file that does not exist yet.

    Raises:
        AdapterError: the adapter has what such a file cannot hold: anything but A and B (DoRA, biases, modules trained
            in full), experts, the embedding or a head tied to it; or it is not finite.
        SpecError: the base is of a family that is not known in GGUF, or lacks one of the modules.
        OSError: the file cannot be written.
    """
    import gguf
    import numpy as np

    base = _text_config(config)
    parts = _parts(adapter, base)
    writer = gguf.GGUFWriter(path, GGUF_ARCHITECTURES[base["model_type"]])
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", adapter.config.alpha)
        for weight, part in parts.items():
            for name, side in zip(adapter.pairs[weight], ("lora_a", "lora_b"), strict=True):
                shape = adapter.checkpoint.tensors[name].shape
                nbytes = 4 * shape[0] * shape[1]
                writer.add_tensor_info(f"{part.name}.{side}", shape, np.dtype(np.float32), nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for weight, part in parts.items():
            for tensor in _pair(adapter, weight, part, base):
                writer.write_tensor_data(tensor.contiguous().numpy())
    finally:
        writer.close()


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    base = {"tie_word_embeddings": config.get("tie_word_embeddings")} | text if isinstance(text, dict) else config
    if base.get("model_type") not in GGUF_ARCHITECTURES:
        raise SpecError(
            f"adapters for the family {str(base.get('model_type'))[:40]!r} cannot be written as GGUF; "
            "export merged_16bit instead."
        )
    return base


def _parts(adapter: LoraAdapter, base: Mapping[str, Any]) -> dict[str, GgufPart]:
    known = {name for pair in adapter.pairs.values() for name in pair}
    if more := adapter.checkpoint.tensors.keys() - known:
        raise AdapterError(
            f"{adapter.directory} has {min(more)!r}, which is more than A and B of linear layers and cannot be held by "
            f"a GGUF adapter; {_INSTEAD}."
        )
    tied = Fields(base).flag("tie_word_embeddings", base["model_type"].startswith(("gemma", "gpt2", "smollm3")))
    found: dict[str, GgufPart] = {}
    for weight in adapter.pairs:
        parts = gguf_parts(base["model_type"], weight)
        if len(parts) != 1 or parts[0].expert is not None or parts[0].rows != "all":
            kind = "is not of the text model" if not parts else "trains experts"
            raise AdapterError(f"{adapter.directory} {kind} ({weight}), which a GGUF adapter cannot hold; {_INSTEAD}.")
        if parts[0].name == "token_embd.weight" or (tied and parts[0].name == "output.weight"):
            raise AdapterError(
                f"{adapter.directory} trains the embedding or a head that is tied to it ({weight}), which llama.cpp "
                f"does not apply rightly from a GGUF adapter; {_INSTEAD}."
            )
        found[weight] = parts[0]
    return found


def _pair(
    adapter: LoraAdapter, weight: str, part: GgufPart, base: Mapping[str, Any]
) -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    a, b = (adapter.checkpoint.read(name).float() for name in adapter.pairs[weight])
    config, module = adapter.config, weight.removesuffix(".weight")
    usual = config.alpha / config.rank(module)
    if config.scaling(module) != usual:
        # With an alpha of zero llama.cpp scales by one.
        b = b * (config.scaling(module) / (usual or 1.0))
    if part.heads is not None:
        b = _interleaved(adapter, weight, b, _heads(base, part))
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise AdapterError(f"{module} in {adapter.directory} is not finite; check the adapter for NaN.")
    return a, b


def _heads(base: Mapping[str, Any], part: GgufPart) -> int:
    fields = Fields(base)
    heads = fields.size("num_attention_heads")
    return heads if part.heads == "q" else fields.size("num_key_value_heads", heads)


def _interleaved(adapter: LoraAdapter, weight: str, b: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Order the rows of B (out, rank) as llama.cpp rotates them: in adjacent pairs, not in halves of a head."""
    if b.shape[0] % (2 * heads):
        raise AdapterError(
            f"{weight} in {adapter.directory} has {b.shape[0]} rows for {heads} heads; name another base."
        )
    return b.view(heads, 2, -1, b.shape[1]).transpose(1, 2).reshape(b.shape)
