"""One decoder that a spec configures, loaded from a stream of tensors."""

from tuneserve.model._decoder import Attention, Decoder
from tuneserve.model._experts import Experts
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._weights import LayerWeights, Weights, load_weights

__all__ = ["Attention", "Decoder", "DenseLinear", "Experts", "LayerWeights", "Linear", "Weights", "load_weights"]
