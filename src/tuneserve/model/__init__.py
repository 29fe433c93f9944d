"""One decoder that a spec configures, loaded from a stream of tensors."""

from tuneserve.model._decoder import Attention, Decoder
from tuneserve.model._weights import Weights, load_weights

__all__ = ["Attention", "Decoder", "Weights", "load_weights"]
