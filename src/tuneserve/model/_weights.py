"""The decoder's weights: fused where the layer reads them together, filled from a stream of tensors."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from tuneserve.checkpoint import WeightReader
from tuneserve.errors import CheckpointError
from tuneserve.spec import EMBEDDING, HEAD, NORM, ModelSpec, layer_names, tensor_shapes

_FLOATS = ("F32", "F16", "BF16")
# Written by old versions of Transformers; the decoder computes them.
_COMPUTED = ".rotary_emb.inv_freq"
_LISTED = 8


@dataclass(frozen=True)
class LayerWeights:
    """One layer; linear weights are (out, in), ``qkv`` and ``gate_up`` stacked along out."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    output: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class Weights:
    """A whole decoder; ``head`` is ``embedding`` itself where they are tied."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weights take."""
        tensors = [self.embedding, self.norm]
        tensors += [getattr(layer, field.name) for layer in self.layers for field in fields(layer)]
        if self.head is not self.embedding:
            tensors.append(self.head)
        return sum(tensor.nbytes for tensor in tensors)


def load_weights(spec: ModelSpec, reader: WeightReader, dtype: torch.dtype, device: torch.device) -> Weights:
    """Read the weights one tensor at a time.

    Raises:
        CheckpointError: tensors are missing, left over, or of the wrong shape or dtype; or the head differs from the
            embedding that it is said to be tied to.
        AdapterError: a merged weight is not finite.
    """
    shapes = tensor_shapes(spec)
    _check(spec, reader, shapes)

    def fused(*names: str) -> torch.Tensor:
        rows = [shapes[name][0] for name in names]
        weight = torch.empty((sum(rows), *shapes[names[0]][1:]), dtype=dtype, device=device)
        for name, part in zip(names, torch.split(weight, rows), strict=True):
            part.copy_(reader.read(name))
        return weight

    embedding = fused(EMBEDDING)
    layers = tuple(_load_layer(layer, fused) for layer in range(spec.layers))
    head = embedding if spec.tied else fused(HEAD)
    return Weights(embedding, layers, fused(NORM), head)


def _load_layer(layer: int, fused: Callable[..., torch.Tensor]) -> LayerWeights:
    names = layer_names(layer)
    return LayerWeights(
        attention_norm=fused(names.attention_norm),
        qkv=fused(names.q, names.k, names.v),
        output=fused(names.o),
        mlp_norm=fused(names.mlp_norm),
        gate_up=fused(names.gate, names.up),
        down=fused(names.down),
    )


def _check(spec: ModelSpec, reader: WeightReader, shapes: dict[str, tuple[int, ...]]) -> None:
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
    left_over = [n for n in reader.tensors if n not in shapes and n not in tied_head and not n.endswith(_COMPUTED)]
    problems += [f"{name} is not part of such a model" for name in left_over]
    if problems:
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise CheckpointError(
            f"the weights in {reader.files[0].parent} do not fit its config.json: "
            f"{'; '.join(problems[:_LISTED])}{more}; download or save the model again."
        )
    if tied_head & reader.tensors.keys() and not torch.equal(reader.read(HEAD), reader.read(EMBEDDING)):
        raise CheckpointError(
            f"{HEAD} in {reader.files[0].parent} differs from the embedding that config.json ties it to; "
            "set tie_word_embeddings to false there."
        )
