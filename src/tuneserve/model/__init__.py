"""One decoder that a spec configures, loaded from a stream of tensors."""

from tuneserve.model._compiled import CompiledDecoder, PagedBatch, reasons_against
from tuneserve.model._decoder import Attention, Decoder
from tuneserve.model._experts import Experts
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._parallel import join
from tuneserve.model._shard import load_shard
from tuneserve.model._weights import LayerWeights, Weights, load_weights

__all__ = [
    "Attention",
    "CompiledDecoder",
    "Decoder",
    "DenseLinear",
    "Experts",
    "LayerWeights",
    "Linear",
    "PagedBatch",
    "Weights",
    "join",
    "load_shard",
    "load_weights",
    "reasons_against",
]
