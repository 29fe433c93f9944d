"""What an export will write, decided from headers and configurations alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.adapters import Adapter, MergedModel, WeightedAdapter, merge_model
from tuneserve.checkpoint import Checkpoint, TensorSpec
from tuneserve.errors import CheckpointError
from tuneserve.sources import ResolvedSource

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
class ExportPlan:
    """Everything an export reads and writes; ``shards`` maps output file names to their tensors in order."""

    source: ResolvedSource
    model: MergedModel
    adapter: Adapter | None
    copies: tuple[Path, ...]
    shards: Mapping[str, tuple[TensorSpec, ...]]

    @property
    def config(self) -> Mapping[str, Any]:
        """The ``config.json`` that will be written."""
        return self.model.config

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor data that will be written."""
        return sum(tensor.nbytes for shard in self.shards.values() for tensor in shard)

    @property
    def merged(self) -> int:
        """How many tensors the adapter changes or adds."""
        return len(self.model.changed)


def plan_merged_16bit(
    source: ResolvedSource, checkpoint: Checkpoint, adapter: Adapter | None, config: Mapping[str, Any]
) -> ExportPlan:
    """Plan a merge into 16-bit safetensors, with the base's own division into files.

    Raises:
        AdapterError: the adapter is not for this base.
        CheckpointError: the base is quantised, or holds an unmerged adapter.
    """
    if "quantization_config" in config:
        raise CheckpointError(
            f"{source.model_dir} is quantised, and merging into quantised weights is not supported yet; "
            "pass the 16-bit base that it was made from with --base."
        )
    model = merge_model(checkpoint, config, [WeightedAdapter(adapter)] if adapter else [])
    shards: dict[str, list[TensorSpec]] = {path.name: [] for path in checkpoint.files}
    file = checkpoint.files[0].name
    for name, spec in model.tensors.items():
        if name in checkpoint.tensors:
            file = checkpoint.tensors[name].path.name
        shards[file].append(spec)
    copies = [path for name in _MODEL_FILES[1:] if (path := source.model_dir / name).is_file()]
    copies += [path for name in _TOKENIZER_FILES if (path := source.tokenizer_dir / name).is_file()]
    return ExportPlan(source, model, adapter, tuple(copies), {name: tuple(t) for name, t in shards.items()})
