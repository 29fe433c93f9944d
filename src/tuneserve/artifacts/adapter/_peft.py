"""An adapter in PEFT's format as PEFT itself saves it, and as vLLM reads it."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_OF_RANKS = ("rank_pattern", "alpha_pattern", "use_rslora")
_ADAPTER_NAME = re.compile(r"\.(lora_(?:A|B|magnitude_vector|embedding_A|embedding_B))\.(?!weight$|bias$)[^.]+(?=\.|$)")


def write_lora(adapter: LoraAdapter, directory: Path, tokenizer_files: Sequence[Path] = ()) -> None:
    """Write ``adapter`` into ``directory``: weights, configuration and copies of ``tokenizer_files``.

    Names lose the adapter's own, all tensors get one dtype (float32 where they differ), and settings of training are
    dropped. Ranks or alphas that differ between modules are made one, which vLLM needs: A and B are padded with zeros
    to the largest rank, and each scaling goes into its B, in float32.

    Raises:
        AdapterError: modules differ in rank or alpha and there is more to them than A and B; or the file holds several
            adapters.
        OSError: ``directory`` cannot be written.
    """
    config = _cleaned(adapter, read_config(adapter.directory / _CONFIG_FILE))
    names = {_ADAPTER_NAME.sub(r".\1", name): name for name in adapter.checkpoint.tensors}
    if len(names) != len(adapter.checkpoint.tensors):
        raise AdapterError(f"{adapter.directory} has several adapters in it; save one adapter per file.")
    if adapter.config.rank_pattern or adapter.config.alpha_pattern:
        outputs = _of_one_rank(adapter)
        rank = max(adapter.ranks)
        config = {key: value for key, value in config.items() if key not in _OF_RANKS} | {"r": rank, "lora_alpha": rank}
    else:
        dtypes = {tensor.dtype for tensor in adapter.checkpoint.tensors.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
        outputs = {name: _Output(dtype, spec.shape) for name, spec in adapter.checkpoint.tensors.items()}
    specs = [TensorSpec(new, outputs[old].dtype, outputs[old].shape) for new, old in names.items()]
    with SafetensorsWriter(directory / _WEIGHTS_FILE, specs) as writer:
        for spec in specs:
            writer.write(spec.name, _bytes(outputs[names[spec.name]].made_from(adapter, names[spec.name])))
    write_json(directory / _CONFIG_FILE, config)
    for path in tokenizer_files:
        shutil.copyfile(path, directory / path.name)


@dataclass(frozen=True)
class _Output:
    """A tensor to be written: scaled, and padded with zeros to ``shape``."""

    dtype: str
    shape: tuple[int, ...]
    factor: float = 1.0

    def made_from(self, adapter: LoraAdapter, name: str) -> "torch.Tensor":
        import torch

        tensor = adapter.checkpoint.read(name)
        if self.dtype == "F32":
            tensor = tensor.float() * self.factor
        if tensor.shape == self.shape:
            return tensor
        result = torch.zeros(self.shape)
        result[: tensor.shape[0], : tensor.shape[1]] = tensor
        return result


def _of_one_rank(adapter: LoraAdapter) -> dict[str, _Output]:
    outputs: dict[str, _Output] = {}
    largest = max(adapter.ranks)
    for module, pair in adapter.keys.pairs.items():
        a, b = (adapter.checkpoint.tensors[name].shape for name in (pair.a, pair.b))
        if len(a) == len(b) == 2 and not (pair.magnitude or pair.bias):
            outputs[pair.a] = _Output("F32", (largest, a[1]))
            outputs[pair.b] = _Output("F32", (b[0], largest), adapter.rules.scaling(module))
    if more := adapter.checkpoint.tensors.keys() - outputs.keys():
        raise AdapterError(
            f"{adapter.directory} has modules of different rank or alpha and also {min(more)!r}, which cannot be made "
            "an adapter of one rank; export merged_16bit instead."
        )
    return outputs


def _cleaned(adapter: LoraAdapter, config: Mapping[str, Any]) -> dict[str, Any]:
    dropped = _OF_TRAINING if adapter.config.residual else _OF_TRAINING | {"init_lora_weights"}
    kept = {
        key: value for key, value in config.items() if key not in dropped and value not in (None, False, [], {}, "")
    }
    return kept | {"bias": adapter.config.bias, "inference_mode": True}


def _bytes(tensor: "torch.Tensor") -> memoryview:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
