"""Reads the tensors of a quantised checkpoint under the names, shapes and dtypes that they have dequantised."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuneserve.checkpoint._codes import StoredCodes, checked
from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint._tensor import TensorSpec
from tuneserve.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# Values that are dequantised at a time: what lies between the stored bytes and the result stays under 20 MB.
SLAB = 1 << 20
DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
DTYPES = {torch_name: name for name, torch_name in DTYPE_NAMES.items()}


class StoredWeight(Protocol):
    """One weight as it is stored."""

    @property
    def spec(self) -> TensorSpec:
        """The weight, dequantised."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that it is made from, the largest first."""

    @property
    def storage(self) -> str:
        """What its way of being stored is called."""

    def dequantise(self, checkpoint: Checkpoint) -> "torch.Tensor":
        """Read the parts and return the weight."""

    def codes(self, checkpoint: Checkpoint, /) -> StoredCodes | None:
        """Read the parts and return them as codes; None where :class:`StoredCodes` cannot say them."""


@dataclass(frozen=True)
class DequantisingReader:
    """A :class:`~tuneserve.checkpoint.WeightReader` over stored weights and the tensors beside them."""

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorSpec]
    stored: Mapping[str, StoredWeight]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return self.checkpoint.files

    def read(self, name: str) -> "torch.Tensor":
        """Read one tensor, dequantised where it is stored quantised."""
        if (weight := self.stored.get(name)) is not None:
            return weight.dequantise(self.checkpoint)
        return self.checkpoint.read(name)

    def storage(self, name: str) -> str | None:
        """Return how one weight is stored; see :class:`~tuneserve.checkpoint.CodeReader`."""
        weight = self.stored.get(name)
        return None if weight is None else weight.storage

    def codes(self, name: str) -> StoredCodes | None:
        """Read one weight as it is stored; see :class:`~tuneserve.checkpoint.CodeReader`.

        Raises:
            CheckpointError: a scale is not finite.
        """
        weight = self.stored.get(name)
        return None if weight is None else checked(name, weight.codes(self.checkpoint))


def dequantising_reader(
    checkpoint: Checkpoint, weights: Sequence[StoredWeight], ignored: Collection[str] = ()
) -> DequantisingReader:
    """Put ``weights`` in the place of their parts; the ``ignored`` tensors vanish, all others stay as they are.

    Raises:
        CheckpointError: a weight is there twice.
    """
    starts = {weight.parts[0]: weight for weight in weights}
    if len(starts) < len(weights):
        twice = Counter(weight.parts[0] for weight in weights).most_common(1)[0][0]
        raise malformed(twice, "is described twice")
    gone = {part for weight in weights for part in weight.parts} | set(ignored)
    tensors: dict[str, TensorSpec] = {}
    for name, header in checkpoint.tensors.items():
        if name in starts:
            spec = starts[name].spec
        elif name not in gone:
            spec = header
        else:
            continue
        if spec.name in tensors:
            raise malformed(spec.name, "is there twice, quantised and not")
        tensors[spec.name] = spec
    return DequantisingReader(checkpoint, tensors, {weight.spec.name: weight for weight in weights})


def config_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that ``config`` gives its model ("BF16"), which is also what Transformers dequantises to.

    bfloat16 where it names none, as such files are older than the habit of saying so.

    Raises:
        CheckpointError: the dtype is no 16-bit or 32-bit float.
    """
    text = config.get("text_config")
    named = None
    for place in (config, text if isinstance(text, dict) else {}):
        named = named or place.get("dtype") or place.get("torch_dtype")
    dtype = DTYPES.get(named or "bfloat16") if isinstance(named, str | None) else None
    if dtype is None:
        raise CheckpointError(f"config.json has the dtype {str(named)[:40]!r}; correct it to bfloat16 or float16.")
    return dtype


def malformed(name: str, problem: str) -> CheckpointError:
    """Return the error for a stored weight that breaks its format."""
    return CheckpointError(f"the quantised weight {name[:200]!r} {problem}; download or save the model again.")
