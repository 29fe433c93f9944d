"""One decoder that a spec configures, loaded from a stream of tensors."""

from tuneserve.model._compiled import CompiledDecoder, PagedBatch, reasons_against
from tuneserve.model._decoder import Attention, Decoder, Recurrence, Scan
from tuneserve.model._delta_net import DeltaNet, DeltaState
from tuneserve.model._experts import Experts
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._weights import LayerWeights, Weights, load_weights

__all__ = [
    "Attention",
    "CompiledDecoder",
    "Decoder",
    "DeltaNet",
    "DeltaState",
    "DenseLinear",
    "Experts",
    "LayerWeights",
    "Linear",
    "PagedBatch",
    "Recurrence",
    "Scan",
    "Weights",
    "load_weights",
    "reasons_against",
]
