"""One decoder that a spec configures, loaded from a stream of tensors."""

from tuneserve.model._compiled import CompiledDecoder, PagedBatch, reasons_against
from tuneserve.model._decoder import Attention, Decoder
from tuneserve.model._experts import Experts
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._lora import AdapterWeights, Delta, load_deltas
from tuneserve.model._lora_linear import AdaptedLinears, LoraStack
from tuneserve.model._sampled import Chosen, SampledRows
from tuneserve.model._weights import LayerWeights, Weights, load_weights

__all__ = [
    "AdaptedLinears",
    "AdapterWeights",
    "Attention",
    "Chosen",
    "CompiledDecoder",
    "Decoder",
    "Delta",
    "DenseLinear",
    "Experts",
    "LayerWeights",
    "Linear",
    "LoraStack",
    "PagedBatch",
    "SampledRows",
    "Weights",
    "load_deltas",
    "load_weights",
    "reasons_against",
]
