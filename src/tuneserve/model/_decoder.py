"""The decoder: tokens of any number of sequences in one flat batch, attention left to whoever holds the cache."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from tuneserve.kernels.gated import gated
from tuneserve.kernels.rms_norm import rms_norm
from tuneserve.kernels.rotary import rotate
from tuneserve.model._delta_net import DeltaState
from tuneserve.model._lora import AdapterWeights
from tuneserve.model._lora_linear import AdaptedLinears
from tuneserve.model._rope import query_scales, rope_tables
from tuneserve.model._weights import LayerWeights, Weights
from tuneserve.spec import ModelSpec, RopeSpec

_Tables = dict[RopeSpec | None, tuple[torch.Tensor, torch.Tensor]]


class Attention(Protocol):
    """Stores the new keys and values of a layer and attends to each token's own sequence up to the token."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return (tokens, heads * head_dim).

        Args:
            layer: its number from 0; that of the layer whose keys and values are taken where it has none of its own.
            query: (tokens, heads, head_dim).
            key, value: (tokens, kv_heads, head_dim); None if that layer has stored them in this step.
            scale: multiplies the scores.
            window: how many tokens a token sees, itself included; None is all.
            softcap: scores are squashed to within plus and minus this; None leaves them.
            sinks: a score for each head, (heads), that takes its part of the probability and gives nothing.
        """


Scan = Callable[[torch.Tensor, DeltaState], torch.Tensor]


class Recurrence(Protocol):
    """Lets the tokens of each sequence go on from the state that those before them left in a layer."""

    def __call__(self, layer: int, inputs: torch.Tensor, scan: Scan) -> torch.Tensor:
        """Return what ``scan`` gives for (tokens, in), (tokens, out).

        Args:
            layer: its number from 0.
            inputs: (tokens, in).
            scan: takes (sequences, tokens, in) and their states, which it brings up to date; returns (sequences,
                tokens, out).
        """


class Decoder:
    """A loaded model for positions below ``context_length``, in the dtype and on the device of its weights."""

    def __init__(self, spec: ModelSpec, weights: Weights, context_length: int) -> None:
        self.spec = spec
        self.weights = weights
        self.context_length = context_length
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        ropes = {layer.rope for layer in spec.per_layer if layer.rope}
        self._adapted: AdaptedLinears | None = None
        self._tables: _Tables = {rope: rope_tables(rope, context_length, self.dtype, self.device) for rope in ropes}
        self._query_scales = None
        if spec.query_scaling is not None:
            self._query_scales = query_scales(spec.query_scaling, context_length, self.dtype, self.device)
        self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=self.dtype, device=self.device)

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that the weights take."""
        return self.weights.nbytes

    def prepare_adapter(self, adapter: AdapterWeights) -> AdapterWeights:
        """Return what :meth:`put_adapter` takes."""
        return adapter

    def put_adapter(self, slot: int, adapter: AdapterWeights) -> None:
        """Let rows with ``slot`` be computed with this adapter."""
        if self._adapted is None:
            self._adapted = AdaptedLinears(self.spec, self.weights)
            self.weights = self._adapted.weights
        self._adapted.put(slot, adapter)

    def drop_adapter(self, slot: int) -> None:
        """Let a slot have nothing in it."""
        self.put_adapter(slot, {})

    def rows_of(self, slots: torch.Tensor | None) -> AbstractContextManager[None]:
        """Inside, :meth:`forward` computes row r with the adapter in slot ``slots[r]``, int32 (tokens).

        A slot of -1 is the base; None is the base for all.
        """
        return nullcontext() if slots is None or self._adapted is None else self._adapted.rows_of(slots)

    @torch.inference_mode()
    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention, recurrence: Recurrence | None = None
    ) -> torch.Tensor:
        """Return the hidden states after the last norm, (tokens, hidden).

        Args:
            ids: token ids, int64 (tokens).
            positions: the position of each in its sequence, int64 (tokens).
            attention: holds the cache and knows which token belongs to which sequence.
            recurrence: holds the states, where the model has any.
        """
        spec, eps = self.spec, self.spec.norm_eps
        step = _Step(
            {rope: (cos[positions], sin[positions]) for rope, (cos, sin) in self._tables.items()},
            None if self._query_scales is None else self._query_scales[positions],
            attention,
            recurrence,
        )
        hidden = F.embedding(ids, self.weights.embedding)
        if spec.embedding_scale != 1.0:
            hidden = hidden * self._embedding_scale
        inputs = None if self.weights.layer_inputs is None else self.weights.layer_inputs(ids, hidden)
        for index, layer in enumerate(self.weights.layers):
            added = self._mix(index, layer, rms_norm(hidden, layer.attention_norm, eps), step)
            hidden = self._add(hidden, added, layer.post_attention_norm)
            added = self._feed_forward(layer, rms_norm(hidden, layer.mlp_norm, eps))
            hidden = self._add(hidden, added, layer.post_mlp_norm)
            if layer.layer_input is not None and inputs is not None:
                hidden = hidden + layer.layer_input(hidden, inputs[:, index])
            if layer.scalar is not None:
                hidden = hidden * layer.scalar
        return rms_norm(hidden, self.weights.norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary) of hidden states (tokens, hidden)."""
        logits = self.weights.head(hidden).float()
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        if self.spec.logit_softcap is not None:
            logits = torch.tanh(logits / self.spec.logit_softcap) * self.spec.logit_softcap
        return logits

    def _mix(self, index: int, layer: LayerWeights, normed: torch.Tensor, step: "_Step") -> torch.Tensor:
        projected = layer.qkv(normed)
        if layer.delta_net is not None:
            assert step.recurrence is not None
            return layer.output(step.recurrence(index, projected, layer.delta_net))
        return layer.output(self._attend(index, layer, projected, step))

    def _attend(self, index: int, layer: LayerWeights, qkv: torch.Tensor, step: "_Step") -> torch.Tensor:
        spec, own = self.spec, self.spec.layer(index)
        kv_heads, head_dim = spec.attention_sizes(index)
        gate = None
        if spec.output_gate:
            gated_query, rest = qkv.tensor_split((2 * spec.heads * head_dim,), dim=-1)
            query, gate = gated_query.view(len(qkv), spec.heads, 2, head_dim).unbind(2)
            heads = torch.cat((query, rest.view(len(qkv), -1, head_dim)), dim=1)
        else:
            heads = qkv.view(len(qkv), -1, head_dim)
        # Of a layer without keys of its own there is only the query.
        turned = heads[:, : spec.heads + kv_heads]
        value = turned[:, spec.heads :] if own.keys_are_values else heads[:, spec.heads + kv_heads :]
        if layer.q_norm is not None:
            parts = [rms_norm(turned[:, : spec.heads], layer.q_norm, spec.norm_eps)]
            if layer.k_norm is not None:
                parts.append(rms_norm(turned[:, spec.heads :], layer.k_norm, spec.norm_eps))
            turned = torch.cat(parts, dim=1)
        if spec.value_norm:
            value = rms_norm(value, None, spec.norm_eps)
        if own.rope is not None:
            turned = rotate(turned, *step.tables[own.rope])
        query = turned[:, : spec.heads]
        attended = step.attention(
            index if own.keys_from is None else own.keys_from,
            query if step.query_scales is None else query * step.query_scales,
            turned[:, spec.heads :] if own.keys_from is None else None,
            value if own.keys_from is None else None,
            scale=spec.scale,
            window=own.window,
            softcap=spec.softcap,
            sinks=layer.sinks,
        )
        return attended if gate is None else attended * gate.flatten(1).sigmoid()

    def _feed_forward(self, layer: LayerWeights, normed: torch.Tensor) -> torch.Tensor:
        if layer.experts is not None:
            return layer.experts(normed)
        assert layer.gate_up is not None and layer.down is not None
        return layer.down(gated(layer.gate_up(normed), self.spec.activation))

    def _add(self, hidden: torch.Tensor, added: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        if norm is not None:
            added = rms_norm(added, norm, self.spec.norm_eps)
        return torch.add(hidden, added, alpha=self.spec.residual_scale)


@dataclass(frozen=True)
class _Step:
    """What all layers of one forward pass need of its tokens."""

    tables: _Tables
    query_scales: torch.Tensor | None
    attention: Attention
    recurrence: Recurrence | None
