"""An adapter as a GGUF file that llama.cpp (``--lora``) and Ollama (``ADAPTER``) apply to the base's GGUF.

Layout: llama.cpp's src/llama-adapter.cpp and convert_lora_to_gguf.py. llama.cpp scales B @ A by alpha over the rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.adapters import LoraAdapter
from tuneserve.errors import AdapterError, SpecError
from tuneserve.spec import GGUF_ARCHITECTURES, Fields, gguf_parts

if TYPE_CHECKING:
    import torch

_INSTEAD = "export gguf:TYPE instead, which holds the merged model"
_TIED = ("gemma", "gemma2", "gemma3_text", "gpt2", "smollm3")
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def write_gguf_lora(adapter: LoraAdapter, config: Mapping[str, Any], path: Path) -> None:
    """Write ``adapter`` as the GGUF file ``path``, in float32.

    Scalings other than alpha over the rank (rsLoRA, patterns of alphas) go into B. The rows of B are in the order that
    llama.cpp rotates q and k in.

    Args:
        adapter: LoRA on linear layers or the embedding.
        config: the base's ``config.json``.
        path: a file that does not exist yet.

    Raises:
        AdapterError: the adapter has what such a file cannot hold (DoRA, biases, modules trained in full, trained
            tokens, experts, an altered base, a tied embedding or head), is not for this base, or is not finite.
        SpecError: the base is of a family that is not known in GGUF, or has no such module.
        OSError: the file cannot be written.
    """
    import gguf
    import numpy as np

    base = _text_config(config)
    pairs = _planned(adapter, base)
    writer = gguf.GGUFWriter(path, GGUF_ARCHITECTURES[base["model_type"]])
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", adapter.config.alpha)
        for pair in pairs:
            for side, shape in (("lora_a", pair.a_shape), ("lora_b", pair.b_shape)):
                writer.add_tensor_info(f"{pair.target}.{side}", shape, np.dtype(np.float32), 4 * shape[0] * shape[1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for pair in pairs:
            for tensor in pair.read(adapter):
                writer.write_tensor_data(tensor.contiguous().numpy())
    finally:
        writer.close()


@dataclass(frozen=True)
class _Pair:
    """A and B of one module: where they go, and what becomes of them.

    ``heads`` is how many heads the rows of B are interleaved in, zero where they stay; A of an embedding is transposed.
    """

    module: str
    target: str
    a: str
    b: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    factor: float
    heads: int
    is_embedding: bool

    def read(self, adapter: LoraAdapter) -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch

        a, b = (adapter.checkpoint.read(name).float() for name in (self.a, self.b))
        b = b * self.factor
        if self.heads:
            b = b.view(self.heads, 2, -1, b.shape[1]).transpose(1, 2).reshape(b.shape)
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise AdapterError(f"{self.module} in {adapter.directory} is not finite; check the adapter for NaN.")
        return (a.T if self.is_embedding else a), b


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    base = {"tie_word_embeddings": config.get("tie_word_embeddings"), **text} if isinstance(text, dict) else config
    if base.get("model_type") not in GGUF_ARCHITECTURES:
        raise SpecError(
            f"adapters for the family {str(base.get('model_type'))[:40]!r} cannot be written as GGUF; "
            "export merged_16bit instead."
        )
    return base


def _planned(adapter: LoraAdapter, base: Mapping[str, Any]) -> list[_Pair]:
    pairs = adapter.keys.pairs
    plain = {name for pair in pairs.values() for name in (pair.a, pair.b)}
    if more := adapter.checkpoint.tensors.keys() - plain:
        raise AdapterError(
            f"{adapter.directory} has {min(more)!r}, which is more than A and B and cannot be held by a GGUF adapter; "
            f"{_INSTEAD}."
        )
    if adapter.config.target_parameters:
        raise AdapterError(f"{adapter.directory} trains bare parameters, which a GGUF adapter cannot hold; {_INSTEAD}.")
    if adapter.config.residual:
        raise AdapterError(
            f"{adapter.directory} was initialised with {adapter.config.residual}, which alters the base, and a GGUF "
            f"adapter goes with the unaltered one; {_INSTEAD}."
        )
    return [_plan(adapter, module, base) for module in pairs]


def _plan(adapter: LoraAdapter, module: str, base: Mapping[str, Any]) -> _Pair:
    pair, tensors, family = adapter.keys.pairs[module], adapter.checkpoint.tensors, base["model_type"]
    a, b = tensors[pair.a].shape, tensors[pair.b].shape
    parts = gguf_parts(family, f"{module}.weight")
    if len(parts) != 1 or parts[0].expert is not None or parts[0].rows != "all":
        what = "belongs to experts" if parts else "is not of the text model"
        raise AdapterError(f"{module} in {adapter.directory} {what}, which a GGUF adapter cannot hold; {_INSTEAD}.")
    part, rank = parts[0], adapter.rules.rank(module)
    if part.name in (_EMBEDDING, _HEAD) and Fields(base).flag("tie_word_embeddings", family in _TIED):
        raise AdapterError(
            f"{adapter.directory} trains {module}, and this base shares its weights between embedding and head, for "
            f"which llama.cpp does not apply an adapter rightly; {_INSTEAD}."
        )
    heads = _heads(base, part.heads) if part.heads else 0
    if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank or (heads and b[0] % (2 * heads)):
        raise AdapterError(f"{module} in {adapter.directory} has A and B of unfit shapes; name the base with --base.")
    # With an alpha of zero llama.cpp scales by one.
    factor = adapter.rules.scaling(module) / (adapter.config.alpha / rank or 1.0)
    if pair.is_embedding:
        a = a[::-1]
    return _Pair(module, part.name, pair.a, pair.b, a, b, factor, heads, pair.is_embedding)


def _heads(base: Mapping[str, Any], kind: str) -> int:
    fields = Fields(base)
    heads = fields.size("num_attention_heads")
    return heads if kind == "q" else fields.size("num_key_value_heads", heads)
