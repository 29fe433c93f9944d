"""The weights of a compressed-tensors checkpoint, dequantised as they are read."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.checkpoint._codes import StoredCodes, checked
from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint._tensor import TensorHeader, TensorSpec
from tuneserve.checkpoint.quantised.compressed_tensors._config import Config
from tuneserve.checkpoint.quantised.compressed_tensors._layout import LEAVES, Layout, layout
from tuneserve.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_INPUTS = frozenset(
    (
        "input_scale",
        "input_zero_point",
        "input_global_scale",
        "output_scale",
        "output_zero_point",
        "output_global_scale",
    )
)
_CACHE = frozenset(("q_scale", "k_scale", "v_scale", "q_zero_point", "k_zero_point", "v_zero_point"))
_QUANTISED_DTYPES = ("I8", "U8", "F4", "F8_E4M3", "F8_E5M2")


class CompressedTensorsReader:
    """Reads quantised weights in the dtype of the model's configuration and everything else as it is stored.

    What quantises activations and the cache is left out: it is no part of the weights.
    """

    def __init__(
        self, checkpoint: Checkpoint, layouts: Mapping[str, Layout], tensors: Mapping[str, TensorSpec]
    ) -> None:
        self._checkpoint = checkpoint
        self._layouts = layouts
        self._tensors = tensors

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return self._checkpoint.files

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """What :meth:`read` returns for each name, in file order."""
        return self._tensors

    def read(self, name: str) -> "torch.Tensor":
        """Read one tensor into memory of its own (CPU); a few megabytes beside its stored form are needed.

        Raises:
            CheckpointError: a file has shrunk since it was opened, or a group index points past the groups.
        """
        if name not in self._layouts:
            return self._checkpoint.read(name)
        import torch

        from tuneserve.checkpoint.quantised.compressed_tensors._dequantise import dequantise

        dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
        return dequantise(self._checkpoint, self._layouts[name], dtypes[self._tensors[name].dtype])

    def storage(self, name: str) -> str | None:
        """Return how one weight is stored; see :class:`~tuneserve.checkpoint.CodeReader`."""
        if name not in self._layouts:
            return None
        args = self._layouts[name].args
        return f"{'INT' if args.type == 'int' else 'FP'}{args.num_bits}"

    def codes(self, name: str) -> StoredCodes | None:
        """Read one weight as it is stored; see :class:`~tuneserve.checkpoint.CodeReader`."""
        if name not in self._layouts:
            return None
        from tuneserve.checkpoint.quantised.compressed_tensors._codes import stored_codes

        return checked(name, stored_codes(self._checkpoint, self._layouts[name]))


def open_compressed_tensors(checkpoint: Checkpoint, config: Mapping[str, Any]) -> CompressedTensorsReader:
    """Open the weights of ``checkpoint``, whose ``config.json`` is ``config``.

    Every size is checked here from the headers; of the data, only the shapes of packed weights are read.

    Raises:
        CheckpointError: the configuration is malformed or names a format that cannot be read, or a weight's tensors are
            incomplete, too many or do not fit together.
    """
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, dict):
        raise CheckpointError("config.json has no quantization_config; download the model again.")
    parsed = Config(quantisation)
    dtype = _dtype(config)

    parts: dict[str, dict[str, TensorHeader]] = defaultdict(dict)
    for name, header in checkpoint.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in LEAVES or leaf == "weight":
            parts[module][leaf] = header
    layouts = {
        f"{module}.weight": layout(checkpoint, module, leaves, parsed.group(module))
        for module, leaves in parts.items()
        if leaves.keys() & LEAVES
    }

    tensors: dict[str, TensorSpec] = {}
    for name, header in checkpoint.tensors.items():
        module, _, leaf = name.rpartition(".")
        weight = f"{module}.weight"
        if weight in layouts and leaf in LEAVES | _INPUTS | {"weight"}:
            tensors[weight] = TensorSpec(weight, dtype, layouts[weight].shape)
        elif leaf == "weight" and header.dtype in _QUANTISED_DTYPES:
            raise CheckpointError(f"{name} is stored in {header.dtype} but has no scale; download the model again.")
        elif not (leaf in _CACHE and parsed.quantises_activations_alone):
            tensors[name] = TensorSpec(name, header.dtype, header.shape)
    return CompressedTensorsReader(checkpoint, layouts, tensors)


def _dtype(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        name = part.get("dtype") or part.get("torch_dtype")
        if name is not None:
            if not isinstance(name, str) or name not in _DTYPES:
                raise CheckpointError(f"config.json names the dtype {str(name)[:40]!r}; set it to bfloat16 or float16.")
            return _DTYPES[name]
    return "BF16"
