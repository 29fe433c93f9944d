"""Weights in fewer bits: one file per way of storing them, to read it and, where tuneserve makes it, to write it."""

from tuneserve.checkpoint.quantised._bnb4bit_encoder import Bnb4bitEncoder
from tuneserve.checkpoint.quantised._encoder import Encoder
from tuneserve.checkpoint.quantised._open import open_weights, quantisation_method

__all__ = ["Bnb4bitEncoder", "Encoder", "open_weights", "quantisation_method"]
