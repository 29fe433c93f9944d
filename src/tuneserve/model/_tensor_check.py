"""Whether a checkpoint has the tensors of a model."""

from collections.abc import Sequence

import torch

from tuneserve.checkpoint import WeightReader
from tuneserve.errors import CheckpointError
from tuneserve.spec import EMBEDDING, HEAD, ModelSpec, is_unused

_FLOATS = ("F32", "F16", "BF16")
# Written by old versions of Transformers; the decoder computes them.
_COMPUTED = ".rotary_emb.inv_freq"
_STACKED = ".experts.gate_up_proj"
_LISTED = 8


def stacks_experts(reader: WeightReader) -> bool:
    """Say whether a checkpoint has all experts of a layer in one tensor."""
    return any(name.endswith(_STACKED) for name in reader.tensors)


def misfit(reader: WeightReader, problems: Sequence[str]) -> CheckpointError:
    """Return the error for weights that are not those of the model, listing the first problems."""
    more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return CheckpointError(
        f"the weights in {reader.files[0].parent} do not fit its config.json: "
        f"{'; '.join(problems[:_LISTED])}{more}; download or save the model again."
    )


def check_tensors(spec: ModelSpec, reader: WeightReader, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that a reader has just what a model needs, in ``shapes`` by name.

    Raises:
        CheckpointError: tensors are missing, left over, or of the wrong shape or dtype; or the head differs from the
            embedding that it is said to be tied to.
    """
    problems = []
    for name, shape in shapes.items():
        header = reader.tensors.get(name)
        if header is None:
            problems.append(f"{name} is missing")
        elif header.shape != shape:
            problems.append(f"{name} is {list(header.shape)}, not {list(shape)}")
        elif header.dtype not in _FLOATS:
            problems.append(f"{name} is {header.dtype}, not a 16- or 32-bit float")
    tied_head = {HEAD} if spec.tied else set()
    expected = shapes.keys() | tied_head
    left_over = [
        n for n in reader.tensors if n not in expected and not n.endswith(_COMPUTED) and not is_unused(spec, n)
    ]
    problems += [f"{name} is not part of such a model" for name in left_over]
    if problems:
        raise misfit(reader, problems)
    if tied_head & reader.tensors.keys() and not torch.equal(reader.read(HEAD), reader.read(EMBEDDING)):
        raise CheckpointError(
            f"{HEAD} in {reader.files[0].parent} differs from the embedding that config.json ties it to; "
            "set tie_word_embeddings to false there."
        )
