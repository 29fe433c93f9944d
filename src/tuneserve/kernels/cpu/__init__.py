"""A decoder's step on the CPU in C++, compiled on the machine that runs it."""

from tuneserve.kernels.cpu._build import build
from tuneserve.kernels.cpu._library import (
    BLOCK_SIZE,
    GROUP_SIZE,
    OUTER_SIZE,
    Activation,
    Batch,
    Codes,
    Delta,
    Kind,
    Layer,
    Library,
    Linear,
    Model,
    load,
)

__all__ = [
    "BLOCK_SIZE",
    "GROUP_SIZE",
    "OUTER_SIZE",
    "Activation",
    "Batch",
    "Codes",
    "Delta",
    "Kind",
    "Layer",
    "Library",
    "Linear",
    "Model",
    "build",
    "load",
]
