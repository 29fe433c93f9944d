"""An adapter in PEFT's format as PEFT itself saves it, and as vLLM reads it."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.adapters import LoraAdapter
from tuneserve.checkpoint import SafetensorsWriter, TensorSpec, write_json
from tuneserve.errors import AdapterError
from tuneserve.sources import read_config

if TYPE_CHECKING:
    import torch

_CONFIG_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# They say how training went, or what was installed then; the trained delta is the same without them.
_OF_TRAINING = frozenset({
    "auto_mapping", "corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "runtime_config", "unsloth_fixed", "velora_config",
})  # fmt: skip
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", None)
_ADAPTER_NAME = re.compile(r"\.(lora_(?:A|B|magnitude_vector|embedding_A|embedding_B))\.(?!weight$|bias$)[^.]+(?=\.|$)")


def write_lora(adapter: LoraAdapter, directory: Path, tokenizer_files: Sequence[Path] = ()) -> None:
    """Write ``adapter`` into ``directory``: weights, configuration and copies of ``tokenizer_files``.

    Names lose the adapter's own, all tensors get one dtype (float32 where they differ), and settings of training are
    dropped. Ranks or alphas that differ between modules are made one, which vLLM needs: A and B are padded with zeros
    to the largest rank, and each scaling goes into its B, in float32.

    Raises:
        AdapterError: modules differ in rank or alpha, and there is more to them than A and B; or two tensors get the
            same name.
        OSError: ``directory`` cannot be written.
    """
    config = _cleaned(read_config(adapter.directory / _CONFIG_FILE))
    uniform = not (adapter.config.rank_pattern or adapter.config.alpha_pattern)
    tensors = adapter.checkpoint.tensors
    names = {_ADAPTER_NAME.sub(r".\1", name): name for name in tensors}
    if len(names) != len(tensors):
        raise AdapterError(f"{adapter.directory} has several adapters in it; save one adapter per file.")
    if uniform:
        dtypes = {tensor.dtype for tensor in tensors.values()}
        dtype, rank = (dtypes.pop() if len(dtypes) == 1 else "F32"), None
    else:
        _refuse_more_than_pairs(adapter)
        dtype, rank = "F32", max(adapter.config.rank(_module(weight)) for weight in adapter.pairs)
        for key in ("rank_pattern", "alpha_pattern", "use_rslora"):
            config.pop(key, None)
        config |= {"r": rank, "lora_alpha": rank}
    sides = {name: (weight, side) for weight, pair in adapter.pairs.items() for side, name in enumerate(pair)}
    specs = [
        TensorSpec(name, dtype, _shape(tensors[original].shape, rank, sides.get(original)))
        for name, original in names.items()
    ]
    with SafetensorsWriter(directory / _WEIGHTS_FILE, specs) as writer:
        for spec in specs:
            original = names[spec.name]
            tensor = adapter.checkpoint.read(original)
            if rank is not None:
                tensor = _padded(adapter, tensor, spec.shape, *sides[original])
            writer.write(spec.name, _bytes(tensor, dtype))
    write_json(directory / _CONFIG_FILE, config)
    for path in tokenizer_files:
        shutil.copyfile(path, directory / path.name)


def _cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _OF_TRAINING}
    if kept.get("init_lora_weights", True) in _PLAIN_INITIALISATIONS:
        kept.pop("init_lora_weights", None)
    return {key: value for key, value in kept.items() if value not in (None, False, [], {}, "")} | {
        "inference_mode": True,
        "bias": kept.get("bias") or "none",
    }


def _refuse_more_than_pairs(adapter: LoraAdapter) -> None:
    known = {name for pair in adapter.pairs.values() for name in pair}
    if more := adapter.checkpoint.tensors.keys() - known:
        raise AdapterError(
            f"{adapter.directory} has modules of different rank or alpha and also {min(more)!r}, which cannot be made "
            "one adapter of one rank; export merged_16bit instead."
        )


def _shape(shape: tuple[int, ...], rank: int | None, side: tuple[str, int] | None) -> tuple[int, ...]:
    if rank is None or side is None:
        return shape
    return (rank, shape[1]) if side[1] == 0 else (shape[0], rank)


def _padded(
    adapter: LoraAdapter, tensor: "torch.Tensor", shape: tuple[int, ...], weight: str, side: int
) -> "torch.Tensor":
    import torch

    tensor = tensor.float() if side == 0 else tensor.float() * adapter.config.scaling(_module(weight))
    result = torch.zeros(shape)
    result[: tensor.shape[0], : tensor.shape[1]] = tensor
    return result


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _bytes(tensor: "torch.Tensor", dtype: str) -> memoryview:
    import torch

    if dtype == "F32":
        tensor = tensor.float()
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
