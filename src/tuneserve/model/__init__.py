"""One decoder that a spec configures, loaded from a stream of tensors."""

from tuneserve.kernels.sampled_rows import SampledRows
from tuneserve.model._compiled import CompiledDecoder, reasons_against
from tuneserve.model._decoder import Attention, Decoder, Recurrence, Scan
from tuneserve.model._delta_net import DeltaState
from tuneserve.model._experts import Experts
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._lora import AdapterWeights, Delta, load_deltas
from tuneserve.model._parallel import join
from tuneserve.model._sampled import Chosen
from tuneserve.model._shard import load_shard
from tuneserve.model._tensor_check import misfit
from tuneserve.model._weights import LayerWeights, Weights, load_weights

__all__ = [
    "AdapterWeights",
    "Attention",
    "Chosen",
    "CompiledDecoder",
    "Decoder",
    "Delta",
    "DeltaState",
    "DenseLinear",
    "Experts",
    "LayerWeights",
    "Linear",
    "Recurrence",
    "SampledRows",
    "Scan",
    "Weights",
    "join",
    "load_deltas",
    "load_shard",
    "load_weights",
    "misfit",
    "reasons_against",
]
