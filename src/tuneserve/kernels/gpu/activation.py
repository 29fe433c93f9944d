"""The functions by which the gate of a feed-forward layer lets numbers through (arXiv:2002.05202)."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from tuneserve.spec import Activation


def activated_reference(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return what :func:`activated` does."""
    return F.silu(x) if activation == "silu" else F.gelu(x, approximate="tanh")


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """Return float32 ``x`` times its sigmoid, or times that which approximates the normal distribution's (GELU)."""
    if ACTIVATION == "silu":
        exponent = x
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        # Half of 1 + tanh(y) is the sigmoid of 2 y. Below the bound it is nothing, and its exponential may be infinite.
        exponent = tl.maximum(1.5957691216057308 * (x + 0.044715 * x * x * x), -80.0)
    return x / (1.0 + tl.exp(-exponent))
