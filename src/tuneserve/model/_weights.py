"""The decoder's weights: fused where the layer reads them together, filled from a stream of tensors."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from tuneserve.adapters import LINEARS
from tuneserve.checkpoint import StoredCodes, WeightReader, codes_of, storage_of
from tuneserve.model._deferred import DeferredLinear
from tuneserve.model._delta_net import DeltaNet
from tuneserve.model._experts import Experts, SharedExpert
from tuneserve.model._layer_input import LayerInput, LayerInputs
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._tensor_check import check_tensors, stacks_experts
from tuneserve.model._text_part import TextPart
from tuneserve.spec import (
    EMBEDDING,
    HEAD,
    LAYER_EMBEDDING,
    LAYER_PROJECTION,
    LAYER_PROJECTION_NORM,
    NORM,
    DeltaNetNames,
    DeltaNetSpec,
    ExpertNames,
    ExpertsSpec,
    LayerInputNames,
    LayerNames,
    LayerSpec,
    ModelSpec,
    layer_names,
    tensor_shapes,
)


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One layer; ``qkv`` and ``gate_up`` are stacked along out. What the layer lacks is None.

    It has either ``gate_up`` and ``down``, or ``experts``. With a ``delta_net`` in place of attention ``qkv`` is all
    that it takes. ``scalar`` is (1).

    Norms are (hidden) or, those of q and k, (head_dim). Where the spec has ``norm_plus_one`` that one is in them, and
    they are float32.
    """

    attention_norm: torch.Tensor
    qkv: Linear
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear | None = None
    down: Linear | None = None
    experts: Experts | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    post_attention_norm: torch.Tensor | None = None
    post_mlp_norm: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    delta_net: DeltaNet | None = None
    layer_input: LayerInput | None = None
    scalar: torch.Tensor | None = None

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything in it."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                yield value
            elif value is not None:
                yield from value.tensors()


@dataclass(frozen=True)
class Weights:
    """A whole decoder; the head's weight is ``embedding`` itself where they are tied."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: Linear
    layer_inputs: LayerInputs | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weights take."""
        tensors = [self.embedding, self.norm, *self.head.tensors()]
        tensors += [tensor for layer in self.layers for tensor in layer.tensors()]
        tensors += self.layer_inputs.tensors() if self.layer_inputs is not None else ()
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())

    def stored_as(self) -> Counter[str]:
        """Return how many deferred weights are stored in few bits, by how they are."""
        linears = [self.head, *(getattr(layer, name) for layer in self.layers for name in LINEARS)]
        return Counter(how for linear in linears if isinstance(linear, DeferredLinear) for how in linear.stored_as)

    def loaded(self) -> "Weights":
        """Return the same with what was deferred read, dequantised; raises what :func:`load_weights` does."""
        layers = []
        for layer in self.layers:
            linears: dict[str, Any] = {name: _loaded(getattr(layer, name)) for name in LINEARS}
            layers.append(replace(layer, **linears))
        head = _loaded(self.head)
        assert head is not None
        return replace(self, layers=tuple(layers), head=head)


def _loaded(linear: Linear | None) -> Linear | None:
    return linear.load() if isinstance(linear, DeferredLinear) else linear


def load_weights(
    spec: ModelSpec, reader: WeightReader, dtype: torch.dtype, device: torch.device, *, deferred: bool = False
) -> Weights:
    """Read the weights one tensor at a time.

    With ``deferred`` linear layers, but for experts, are :class:`DeferredLinear`; reading them raises the same errors.

    Raises:
        CheckpointError: tensors are missing, left over, or of the wrong shape or dtype; or the head differs from the
            embedding that it is said to be tied to.
        AdapterError: a merged weight is not finite.
    """
    if spec.wrapped:
        reader = TextPart(reader)
    # Transformers has saved experts in both ways.
    stacked = stacks_experts(reader)
    shapes = tensor_shapes(spec, stacked=stacked)
    check_tensors(spec, reader, shapes)
    loader = _Loader(spec, reader, shapes, dtype, device, deferred)
    embedding = loader.stacked(EMBEDDING)
    layers = tuple(
        loader.layer(layer_names(spec, index, stacked=stacked), spec.layer(index)) for index in range(spec.layers)
    )
    return Weights(embedding, layers, loader.norm(NORM), loader.head(embedding), loader.layer_inputs())


@dataclass(frozen=True)
class _Loader:
    spec: ModelSpec
    reader: WeightReader
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device
    deferred: bool = False

    def head(self, embedding: torch.Tensor) -> Linear:
        tied = DenseLinear(embedding)
        if not self.deferred:
            return tied if self.spec.tied else DenseLinear(self.stacked(HEAD))
        name = EMBEDDING if self.spec.tied else HEAD
        load = (lambda: tied) if self.spec.tied else (lambda: DenseLinear(self.stacked(HEAD)))
        return DeferredLinear((name,), load, self.codes, lambda: None, self.stored_as(name))

    def codes(self, name: str) -> StoredCodes | None:
        return codes_of(self.reader, name)

    def stored_as(self, *names: str) -> tuple[str, ...]:
        return tuple(how for name in names if (how := storage_of(self.reader, name)))

    def layer(self, names: LayerNames, own: LayerSpec) -> LayerWeights:
        spec = self.spec
        dense, attends = own.experts is None, own.delta_net is None
        return LayerWeights(
            attention_norm=self.norm(names.attention_norm),
            qkv=self.maybe_deferred(*names.qkv, bias=spec.qkv_bias and attends),
            output=self.maybe_deferred(names.output, bias=spec.output_bias and attends),
            mlp_norm=self.norm(names.mlp_norm),
            gate_up=self.maybe_deferred(*names.gate_up, bias=spec.mlp_bias) if dense else None,
            down=self.maybe_deferred(names.down, bias=spec.mlp_bias) if dense else None,
            experts=self.experts(names.experts, own.experts) if names.experts and own.experts else None,
            q_norm=self.optional_norm(names.q_norm),
            k_norm=self.optional_norm(names.k_norm),
            post_attention_norm=self.optional_norm(names.post_attention_norm),
            post_mlp_norm=self.optional_norm(names.post_mlp_norm),
            sinks=self.stacked(names.sinks) if names.sinks else None,
            delta_net=self.delta_net(names.delta_net, own.delta_net) if names.delta_net and own.delta_net else None,
            layer_input=self.layer_input(names.layer_input) if names.layer_input else None,
            scalar=self.stacked(names.scalar) if names.scalar else None,
        )

    def delta_net(self, names: DeltaNetNames, net: DeltaNetSpec) -> DeltaNet:
        conv = self.float32(names.conv).squeeze(1)
        decay, step_bias, norm = (self.float32(name) for name in (names.decay, names.step_bias, names.norm))
        return DeltaNet(net, self.spec.norm_eps, conv, decay, step_bias, norm)

    def layer_inputs(self) -> LayerInputs | None:
        if self.spec.layer_input is None:
            return None
        projection = self.linear(LAYER_PROJECTION, bias=False)
        embedding, norm = self.stacked(LAYER_EMBEDDING), self.norm(LAYER_PROJECTION_NORM)
        return LayerInputs(embedding, projection, norm, self.spec.norm_eps)

    def layer_input(self, names: LayerInputNames) -> LayerInput:
        gate, projection = (self.linear(module, bias=False) for module in (names.gate, names.projection))
        return LayerInput(gate, projection, self.norm(names.norm), self.spec.activation, self.spec.norm_eps)

    def experts(self, names: ExpertNames, experts: ExpertsSpec) -> Experts:
        router = self.linear(names.router, bias=experts.biases)
        if names.stacked:
            gate_up = self.slices(names.gate_up[0], names, experts, halves=names.interleaved)
            down = self.slices(names.down, names, experts, halves=False)
        else:
            gate_up, down = (
                tuple(
                    self.linear(*(module.format(expert=expert) for module in modules), bias=experts.biases)
                    for expert in range(experts.count)
                )
                for modules in (names.gate_up, (names.down,))
            )
        return Experts(experts, self.spec.activation, router, gate_up, down, self.shared_expert(names))

    def shared_expert(self, names: ExpertNames) -> SharedExpert | None:
        if names.shared_down is None or names.shared_gate is None:
            return None
        gate_up = self.linear(*names.shared_gate_up, bias=False)
        down, gate = (self.linear(module, bias=False) for module in (names.shared_down, names.shared_gate))
        return SharedExpert(self.spec.activation, gate_up, down, gate)

    def slices(self, name: str, names: ExpertNames, experts: ExpertsSpec, *, halves: bool) -> tuple[Linear, ...]:
        """Return each expert's part of one tensor; ``halves`` brings even rows before odd ones."""
        weight = self.reader.read(name)
        weight = weight.transpose(1, 2) if names.transposed else weight
        bias = self.reader.read(f"{name}_bias") if experts.biases else None
        if halves:
            weight = torch.cat((weight[:, ::2], weight[:, 1::2]), dim=1)
            bias = None if bias is None else torch.cat((bias[:, ::2], bias[:, 1::2]), dim=1)
        weight = weight.to(dtype=self.dtype, device=self.device).contiguous()
        bias = None if bias is None else bias.to(dtype=self.dtype, device=self.device)
        return tuple(
            DenseLinear(weight[expert], None if bias is None else bias[expert]) for expert in range(experts.count)
        )

    def maybe_deferred(self, *modules: str, bias: bool) -> Linear:
        if not self.deferred:
            return self.linear(*modules, bias=bias)
        names = tuple(f"{module}.weight" for module in modules)
        return DeferredLinear(
            names,
            lambda: self.linear(*modules, bias=bias),
            self.codes,
            lambda: self.bias(*modules) if bias else None,
            self.stored_as(*names),
        )

    def linear(self, *modules: str, bias: bool) -> DenseLinear:
        weight = self.stacked(*(f"{module}.weight" for module in modules))
        return DenseLinear(weight, self.bias(*modules) if bias else None)

    def bias(self, *modules: str) -> torch.Tensor:
        return self.stacked(*(f"{module}.bias" for module in modules))

    def optional_norm(self, name: str | None) -> torch.Tensor | None:
        return None if name is None else self.norm(name)

    def norm(self, name: str) -> torch.Tensor:
        if not self.spec.norm_plus_one:
            return self.stacked(name)
        # In 16 bits one plus a small weight would lose most of the weight.
        return 1.0 + self.float32(name)

    def float32(self, name: str) -> torch.Tensor:
        return self.reader.read(name).to(device=self.device, dtype=torch.float32)

    def stacked(self, *names: str) -> torch.Tensor:
        rows = [self.shapes[name][0] for name in names]
        weight = torch.empty((sum(rows), *self.shapes[names[0]][1:]), dtype=self.dtype, device=self.device)
        for name, part in zip(names, torch.split(weight, rows), strict=True):
            part.copy_(self.reader.read(name))
        return weight
