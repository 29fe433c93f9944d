"""Weights in fewer bits: one file per way of storing them, to read it and, where tuneserve makes it, to write it."""

from tuneserve.checkpoint.quantised._bnb4bit_encoder import Bnb4bitEncoder
from tuneserve.checkpoint.quantised._encoder import Encoder, ObservingEncoder
from tuneserve.checkpoint.quantised._open import open_weights, quantisation_method
from tuneserve.checkpoint.quantised.compressed_tensors import CT_ENCODERS

__all__ = ["CT_ENCODERS", "Bnb4bitEncoder", "Encoder", "ObservingEncoder", "open_weights", "quantisation_method"]
