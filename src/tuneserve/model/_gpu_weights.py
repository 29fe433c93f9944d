"""A decoder's weights on a GPU, each linear layer of the kind that computes with it as it is stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tuneserve.kernels.gpu.packed import pack
from tuneserve.model._deferred import DeferredLinear
from tuneserve.model._gpu_linear import DenseGpuLinear, GpuLinear
from tuneserve.model._gpu_packed import Bits, PackedGpuLinear, PackedScratch, pack_stored, quantise
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._weights import LayerWeights, Weights


@dataclass(frozen=True)
class GpuLayer:
    """One layer; the norms are those of :class:`~tuneserve.model.LayerWeights`."""

    attention_norm: torch.Tensor
    qkv: GpuLinear
    output: GpuLinear
    mlp_norm: torch.Tensor
    gate_up: GpuLinear
    down: GpuLinear
    head_norms: tuple[torch.Tensor, torch.Tensor] | None

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything in it."""
        yield from (self.attention_norm, self.mlp_norm, *(self.head_norms or ()))
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            yield from linear.tensors()


@dataclass(frozen=True)
class GpuWeights:
    """A whole decoder.

    Attributes:
        kept: how many linear layers are in the bits that they are stored in.
        dequantised: how many could not be.
    """

    embedding: torch.Tensor
    layers: tuple[GpuLayer, ...]
    norm: torch.Tensor
    head: GpuLinear
    kept: int
    dequantised: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weights take."""
        tensors = [self.embedding, self.norm, *self.head.tensors()]
        tensors += [tensor for layer in self.layers for tensor in layer.tensors()]
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def gpu_weights(weights: Weights, bits: Bits | None, *, keep: bool) -> GpuWeights:
    """Read what is deferred and return the weights, in ``bits`` where they are given (with int4 the head is int8).

    Args:
        weights: on the device where they are to be; the dense ones stay in use.
        keep: whether weights that are stored in few bits stay so where a kernel computes with them.

    Raises:
        InputError: a deferred weight cannot be read.
    """
    maker = _Maker(weights.embedding.dtype, weights.embedding.device, bits, keep)
    layers = tuple(maker.layer(layer) for layer in weights.layers)
    head = maker.linear(weights.head, "int8" if bits else None)
    return GpuWeights(weights.embedding, layers, weights.norm, head, maker.kept, maker.dequantised)


class _Maker:
    def __init__(self, dtype: torch.dtype, device: torch.device, bits: Bits | None, keep: bool) -> None:
        self._dtype, self._device, self._bits, self._keep = dtype, device, bits, keep
        self._scratch: PackedScratch | None = None
        self.kept = self.dequantised = 0

    def layer(self, layer: LayerWeights) -> GpuLayer:
        bits = self._bits
        return GpuLayer(
            attention_norm=layer.attention_norm,
            qkv=self.linear(layer.qkv, bits),
            output=self.linear(layer.output, bits),
            mlp_norm=layer.mlp_norm,
            gate_up=self.linear(layer.gate_up, bits, gated=True),
            down=self.linear(layer.down, bits),
            head_norms=None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm),
        )

    def linear(self, linear: Linear | None, bits: Bits | None, *, gated: bool = False) -> GpuLinear:
        if isinstance(linear, DeferredLinear):
            if bits is None and self._keep and (codes := linear.codes()) is not None:
                packed = pack_stored(codes, self._device, self._dtype, gated=gated)
                if packed is not None:
                    self.kept += 1
                    return PackedGpuLinear(packed, linear.read_bias(), self._scratch_of_all())
                self.dequantised += 1
            linear = linear.load()
        assert isinstance(linear, DenseLinear)
        if bits is None:
            return DenseGpuLinear(linear)
        return PackedGpuLinear(pack(quantise(linear.weight, bits)), linear.bias, self._scratch_of_all())

    def _scratch_of_all(self) -> PackedScratch:
        if self._scratch is None:
            self._scratch = PackedScratch.of(self._dtype, self._device)
        return self._scratch
