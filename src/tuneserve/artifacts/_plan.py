"""What an export will write, decided from headers and configurations alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.adapters import LoraAdapter
from tuneserve.checkpoint import Checkpoint, TensorHeader, TensorSpec
from tuneserve.errors import AdapterError, CheckpointError
from tuneserve.sources import ResolvedSource

_SIXTEEN_BIT = ("BF16", "F16")
_MODEL_FILES = ("config.json", "generation_config.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: read ``input``, add the adapter's delta if ``merged``, write as ``output``."""

    input: TensorHeader
    output: TensorSpec
    merged: bool


@dataclass(frozen=True)
class ExportPlan:
    """Everything an export reads and writes; ``shards`` maps output file names to their tensors in order."""

    source: ResolvedSource
    checkpoint: Checkpoint
    adapter: LoraAdapter | None
    config: Mapping[str, Any]
    copies: tuple[Path, ...]
    shards: Mapping[str, tuple[PlannedTensor, ...]]

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor data that will be written."""
        return sum(tensor.output.nbytes for shard in self.shards.values() for tensor in shard)

    @property
    def merged(self) -> int:
        """How many tensors take a delta."""
        return sum(tensor.merged for shard in self.shards.values() for tensor in shard)


def plan_merged_16bit(
    source: ResolvedSource, checkpoint: Checkpoint, adapter: LoraAdapter | None, config: Mapping[str, Any]
) -> ExportPlan:
    """Plan a merge into 16-bit safetensors, with the base's own division into files.

    A base in float32 becomes bfloat16; in a 16-bit base every tensor keeps its dtype (some keep a few in float32 on
    purpose).

    Raises:
        AdapterError: the adapter is not for this base, or trains a tied output head.
        CheckpointError: the base is quantised.
    """
    if "quantization_config" in config:
        raise CheckpointError(
            f"{source.model_dir} is quantised, and merging into quantised weights is not supported yet; "
            "pass the 16-bit base that it was made from with --base."
        )
    if adapter is not None:
        _refuse_tied_head(adapter, config)
        adapter.check({name: header.shape for name, header in checkpoint.tensors.items()})
    else:
        _refuse_unmerged_leftovers(source, checkpoint)

    widened = _mostly_float32(checkpoint)
    shards: dict[str, list[PlannedTensor]] = {path.name: [] for path in checkpoint.files}
    for header in checkpoint.tensors.values():
        dtype = "BF16" if widened and header.dtype == "F32" else header.dtype
        merged = adapter is not None and header.name in adapter.pairs
        if merged and dtype not in (*_SIXTEEN_BIT, "F32"):
            raise CheckpointError(f"{header.name} of the base is {dtype}, which takes no delta; pass a 16-bit --base.")
        output = TensorSpec(header.name, dtype, header.shape)
        shards[header.path.name].append(PlannedTensor(header, output, merged))

    output_config = dict(config)
    if widened:
        output_config.pop("torch_dtype", None)
        output_config["dtype"] = "bfloat16"
    copies = [path for name in _MODEL_FILES[1:] if (path := source.model_dir / name).is_file()]
    copies += [path for name in _TOKENIZER_FILES if (path := source.tokenizer_dir / name).is_file()]
    return ExportPlan(
        source, checkpoint, adapter, output_config, tuple(copies), {name: tuple(t) for name, t in shards.items()}
    )


def _refuse_tied_head(adapter: LoraAdapter, config: Mapping[str, Any]) -> None:
    text_config = config.get("text_config")
    tied = config.get("tie_word_embeddings", isinstance(text_config, dict) and text_config.get("tie_word_embeddings"))
    for weight in adapter.pairs:
        if tied and weight.endswith(("lm_head.weight", "embed_tokens.weight")):
            raise AdapterError(
                f"{adapter.directory} trains {weight.removesuffix('.weight')}, which shares its weights with the "
                "embedding in this base, and that is not supported yet; train without it."
            )


def _refuse_unmerged_leftovers(source: ResolvedSource, checkpoint: Checkpoint) -> None:
    for name in checkpoint.tensors:
        if ".lora_" in name or ".base_layer." in name:
            raise CheckpointError(
                f"{source.model_dir} holds an unmerged adapter inside its weights ({name}); "
                "save the adapter alone with PEFT's save_pretrained and export that."
            )


def _mostly_float32(checkpoint: Checkpoint) -> bool:
    total = sum(header.nbytes for header in checkpoint.tensors.values())
    return 2 * sum(header.nbytes for header in checkpoint.tensors.values() if header.dtype == "F32") > total
