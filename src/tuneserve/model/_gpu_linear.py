"""Linear layers on a GPU: the three products that a decoder's layer is made of, and the dense kind of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from tuneserve.kernels.gpu import norm as norms
from tuneserve.kernels.gpu.gate import gate
from tuneserve.kernels.gpu.matvec import matvec
from tuneserve.kernels.gpu.skinny import skinny
from tuneserve.model._linear import DenseLinear

# Up to so many rows a product is bound by the reading of its weight.
FEW = 32


@dataclass(frozen=True)
class Norm:
    """The RMS norm before a product: its weight (hidden), and where normed rows may be put (rows, hidden)."""

    weight: torch.Tensor
    eps: float
    out: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normed rows of ``x``."""
        return norms.norm(x, self.weight, self.eps, self.out)


class GpuLinear(Protocol):
    """A weight (out, in), and perhaps a bias, however they are stored. Rows may be of a captured graph's buffers."""

    def product(self, x: torch.Tensor, out: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Write the product of ``x`` (rows, in), normed where there is a norm, to ``out`` (rows, out), and return it.

        ``out`` has the dtype of ``x`` or float32.
        """

    def gated(self, x: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Return ``silu(first) * second`` of the halves of a normed product, for the next layer to add.

        ``out`` (rows, out / 2), where it is written if not elsewhere, and ``scratch`` (rows, out) may be used.
        """

    def add(self, x: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add the product of ``x`` (rows, in) to ``hidden`` (rows, out)."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what it keeps in memory for itself."""


class DenseGpuLinear:
    """A weight in 16 bits: a matrix-vector kernel, a matrix kernel for a few rows, cuBLAS beyond."""

    def __init__(self, linear: DenseLinear) -> None:
        self.weight, self.bias = linear.weight, linear.bias

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the weight, and the bias if there is one."""
        return DenseLinear(self.weight, self.bias).tensors()

    def product(self, x: torch.Tensor, out: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Write the product of ``x`` to ``out``; see :class:`GpuLinear`."""
        if len(x) == 1:
            return self._one(x, norm, out=out)
        x = x if norm is None else norm(x)
        if len(x) <= FEW:
            return skinny(x, self.weight, bias=self.bias, out=out)
        return write_product(x, self.weight, self.bias, out)

    def gated(self, x: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Write the gated product of ``x`` to ``out``; see :class:`GpuLinear`."""
        if len(x) == 1:
            return self._one(x, norm, gated=True, out=out)
        if len(x) <= FEW:
            return skinny(norm(x), self.weight, bias=self.bias, gated=True, out=out)
        return gate(write_product(norm(x), self.weight, self.bias, scratch), out)

    def add(self, x: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add the product of ``x`` to ``hidden``."""
        if len(x) <= FEW:
            (matvec if len(x) == 1 else skinny)(x, self.weight, bias=self.bias, residual=hidden, out=hidden)
            return
        if self.bias is not None:
            hidden.add_(self.bias)
        hidden.addmm_(x, self.weight.T)

    def _one(self, x: torch.Tensor, norm: Norm | None, *, out: torch.Tensor, gated: bool = False) -> torch.Tensor:
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        return matvec(x, self.weight, bias=self.bias, norm=weight, eps=eps, gated=gated, out=out)


def write_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Multiply many rows by a weight in their dtype, by cuBLAS."""
    if out.dtype == x.dtype:
        if bias is None:
            return torch.mm(x, weight.T, out=out)
        return torch.addmm(bias, x, weight.T, out=out)
    if x.is_cuda:
        torch.mm(x, weight.T, out_dtype=out.dtype, out=out)
        return out if bias is None else out.add_(bias)
    return out.copy_(torch.nn.functional.linear(x, weight, bias))
