"""The gate of a feed-forward layer: ``activation(gate) * up`` (arXiv:2002.05202)."""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.activation import activated, activated_reference
from tuneserve.kernels.gpu.launch import dependent
from tuneserve.spec import Activation


def gate_reference(gate_up: torch.Tensor, activation: Activation = "silu") -> torch.Tensor:
    """Return what :func:`gate` does, in float32, rounded once."""
    first, second = gate_up.float().chunk(2, dim=-1)
    return (activated_reference(first, activation) * second).to(gate_up.dtype)


def gate(gate_up: torch.Tensor, out: torch.Tensor, activation: Activation = "silu") -> torch.Tensor:
    """Combine the halves of each row of ``gate_up`` (tokens, 2 * intermediate) into ``out`` (tokens, intermediate)."""
    intermediate = out.shape[1]
    block = 1024
    _gate[(len(out), triton.cdiv(intermediate, block))](
        gate_up, out, intermediate, ACTIVATION=activation, BLOCK=block, num_warps=4, **dependent(_gate)
    )
    return out


@triton.jit
def _gate(gate_up, out, intermediate, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < intermediate
    first = tl.load(gate_up + row * 2 * intermediate + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(gate_up + (row * 2 + 1) * intermediate + column, mask=inside, other=0.0).to(tl.float32)
    result = activated(first, ACTIVATION) * second
    tl.store(out + row * intermediate + column, result.to(out.dtype.element_ty), mask=inside)
