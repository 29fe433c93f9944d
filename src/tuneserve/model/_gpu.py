"""The decoder on an NVIDIA GPU: Triton kernels and cuBLAS, decode steps captured in CUDA graphs.

A decode step is bound by reading the weights once. For one sequence every product is a matrix-vector kernel, for up to
32 a matrix kernel that reads each weight once, both with what surrounds the product fused in; beyond that cuBLAS is as
fast.
Greedy steps may follow one another on the device, each feeding its tokens to the next, while the host is elsewhere.

Importing this module needs Triton.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from tuneserve.kernels.gpu.decode_attention import DecodeScratch, decode_attention
from tuneserve.kernels.gpu.gate import gate
from tuneserve.kernels.gpu.greedy import greedy, greedy_scratch
from tuneserve.kernels.gpu.matvec import matvec
from tuneserve.kernels.gpu.norm import norm
from tuneserve.kernels.gpu.prefill_attention import prefill_attention, query_tiles
from tuneserve.kernels.gpu.rope_store import rope_store
from tuneserve.kernels.gpu.skinny import skinny
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._rope import rope_tables
from tuneserve.model._weights import LayerWeights, Weights
from tuneserve.spec import LayerSpec, ModelSpec, RopeSpec

# Two programs for each multiprocessor of the largest GPUs.
_PROGRAMS = 264
_MOST_SPLITS = 32
_SKINNY = 32
# Of the cache; room for the tables of larger ones is room to spare.
_LEAST_BLOCK = 16
_HEAD_DIMS = (32, 64, 128, 256)
_LAYER_FIELDS = {"rope", "window"}
_MODEL_FIELDS = {
    "family", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size", "context_length",
    "per_layer", "norm_eps", "tied", "scale", "qkv_bias", "output_bias", "mlp_bias", "fused", "qk_norm", "softcap",
    "embedding_scale", "logit_scale", "logit_softcap",
}  # fmt: skip


class DeviceBatch(Protocol):
    """The tokens of a step, on the device; ``counts`` are the rows of each sequence, on the host.

    Attributes:
        ids, positions, slots: int64 (tokens); a slot is block * block size + offset.
        starts: the first row of each sequence, then the number of rows, int32 (sequences + 1).
        lengths: tokens of each sequence with these, int32 (sequences).
        block_tables: the blocks of each sequence in order, int32 (sequences, blocks).
    """

    @property
    def ids(self) -> torch.Tensor: ...
    @property
    def positions(self) -> torch.Tensor: ...
    @property
    def slots(self) -> torch.Tensor: ...
    @property
    def starts(self) -> torch.Tensor: ...
    @property
    def lengths(self) -> torch.Tensor: ...
    @property
    def block_tables(self) -> torch.Tensor: ...
    @property
    def counts(self) -> Sequence[int]: ...


def gpu_reasons_against(spec: ModelSpec, weights: Weights) -> list[str]:
    """Return why these kernels cannot run a model, nothing where they can.

    What a spec may come to say that is not known here counts against it unless it has the default.
    """
    reasons = [] if spec.head_dim in _HEAD_DIMS else [f"head_dim is {spec.head_dim}, not one of {_HEAD_DIMS}"]
    reasons += _unknown(spec, _MODEL_FIELDS)
    for layer in spec.per_layer:
        reasons += _unknown(layer, _LAYER_FIELDS)
        if layer.rope is None or layer.rope.dim != spec.head_dim:
            reasons.append("not all of each head is rotated")
    linears = [weights.head, *(one for layer in weights.layers for one in _linears(layer) if one is not None)]
    reasons += [f"its weights are {type(one).__name__}" for one in linears if not isinstance(one, DenseLinear)]
    if any(layer.sinks is not None for layer in weights.layers):
        reasons.append("it has attention sinks")
    return list(dict.fromkeys(reasons))


def _unknown(part: ModelSpec | LayerSpec, known: set[str]) -> list[str]:
    unknown = [field for field in fields(part) if field.name not in known]
    return [f"it has {field.name}" for field in unknown if getattr(part, field.name) != field.default]


def _linears(layer: LayerWeights) -> tuple[Linear | None, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


class _Bucket:
    """The buffers of decode steps of up to ``count`` sequences, and the graphs over them once they are captured."""

    def __init__(self, decoder: "GpuDecoder", count: int) -> None:
        spec, device, dtype = decoder.spec, decoder.device, decoder.dtype
        self.count = count
        # Zeros, for rows of no sequence are computed too.
        self.hidden = torch.zeros(count, spec.hidden_size, dtype=dtype, device=device)
        self.normed = torch.zeros_like(self.hidden)
        self.qkv = torch.zeros(count, spec.qkv_size, dtype=dtype, device=device)
        self.attended = torch.zeros(count, spec.q_size, dtype=dtype, device=device)
        self.gate_up = torch.zeros(count, 2 * spec.intermediate_size, dtype=dtype, device=device)
        self.activated = torch.zeros(count, spec.intermediate_size, dtype=dtype, device=device)
        self.logits = torch.zeros(count, spec.vocab_size, device=device)
        self.best = greedy_scratch(count, device)
        splits = max(1, min(_MOST_SPLITS, _PROGRAMS // (count * spec.kv_heads)))
        self.scratch = DecodeScratch.of(count, spec.heads, spec.kv_heads, spec.head_dim, splits, device)
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}


class GpuDecoder:
    """A loaded model on a GPU (on the CPU in Triton's interpreter), for positions below ``context_length``.

    Args:
        spec, weights: a model that :func:`gpu_reasons_against` has nothing against.
        sequences: how many may decode together.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, context_length: int, sequences: int) -> None:
        self.spec, self.weights, self.context_length = spec, weights, context_length
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._keys = self._values = torch.empty(0)
        ropes = {layer.rope for layer in spec.per_layer if layer.rope}
        self._tables = {rope: _angles(rope, context_length, self.device) for rope in ropes}
        blocks = -(-context_length // _LEAST_BLOCK)
        self._ids = torch.zeros(sequences, dtype=torch.int64, device=self.device)
        self._lengths = torch.zeros(sequences, dtype=torch.int32, device=self.device)
        self._blocks = torch.zeros(sequences, blocks, dtype=torch.int32, device=self.device)
        self._sizes = sorted({1, 2, 4, 8, 16, 24, *range(32, sequences, 32), sequences})
        self._buckets: dict[int, _Bucket] = {}
        self._pool: Any = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that the weights take."""
        return self.weights.nbytes

    @torch.inference_mode()
    def forward(self, batch: DeviceBatch, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Store the keys and values of a batch's tokens and return their hidden states after the last norm.

        Args:
            batch: the tokens.
            keys, values: the cache, (layers, blocks, kv_heads, block_size, head_dim), the same at each call.

        Returns:
            (tokens, hidden), valid until the next call.
        """
        self._use(keys, values)
        if max(batch.counts) == 1:
            bucket = self._enter(batch)
            self._run(bucket, choose=False)
            return bucket.normed[: len(batch.counts)]
        return self._prefill(batch)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary) of hidden states (tokens, hidden)."""
        logits = hidden.new_empty(len(hidden), self.spec.vocab_size, dtype=torch.float32)
        self._head(hidden.contiguous(), logits)
        if self.spec.logit_scale != 1.0:
            logits *= self.spec.logit_scale
        if self.spec.logit_softcap is not None:
            logits = torch.tanh(logits / self.spec.logit_softcap) * self.spec.logit_softcap
        return logits

    @torch.inference_mode()
    def decode_greedily(self, batch: DeviceBatch, keys: torch.Tensor, values: torch.Tensor, steps: int) -> torch.Tensor:
        """Continue each sequence of a batch of single tokens by ``steps`` tokens, the likeliest each time.

        The block tables must have room for them. A token that comes of numbers that are not finite is -1.

        Returns:
            int64 (steps, sequences).
        """
        self._use(keys, values)
        self._enter(batch)
        return self._choose(len(batch.counts), steps)

    @torch.inference_mode()
    def go_on_greedily(
        self, block_tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, steps: int
    ) -> torch.Tensor:
        """Continue the sequences of the call before by ``steps`` tokens more.

        Args:
            block_tables: where each sequence's blocks lie now, int32 (sequences, blocks).
            keys, values, steps: as before.

        Returns:
            int64 (steps, sequences).
        """
        self._use(keys, values)
        self._blocks[: len(block_tables), : block_tables.shape[1]] = block_tables
        return self._choose(len(block_tables), steps)

    def _use(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        assert not self._keys.numel() or self._keys.data_ptr() == keys.data_ptr(), "the graphs are over another cache"
        self._keys, self._values = keys, values

    def _enter(self, batch: DeviceBatch) -> _Bucket:
        count = len(batch.counts)
        bucket = self._bucket(count)
        self._ids[:count] = batch.ids
        self._lengths[:count] = batch.lengths
        self._lengths[count : bucket.count] = 0
        self._blocks[:count, : batch.block_tables.shape[1]] = batch.block_tables
        return bucket

    def _bucket(self, count: int) -> _Bucket:
        size = next(size for size in self._sizes if size >= count)
        return self._buckets.get(size) or self._buckets.setdefault(size, _Bucket(self, size))

    def _choose(self, count: int, steps: int) -> torch.Tensor:
        bucket = self._bucket(count)
        chosen = self._ids.new_empty(steps, count)
        for step in range(steps):
            self._run(bucket, choose=True)
            chosen[step] = self._ids[:count]
        return chosen

    def _run(self, bucket: _Bucket, *, choose: bool) -> None:
        if self.device.type != "cuda":
            self._step(bucket, choose=choose)
            return
        if choose not in bucket.graphs:
            bucket.graphs[choose] = self._capture(bucket, choose=choose)
        bucket.graphs[choose].replay()

    def _capture(self, bucket: _Bucket, *, choose: bool) -> torch.cuda.CUDAGraph:
        kept = self._ids.clone(), self._lengths.clone()
        # Without sequences nothing is written; it compiles the kernels and lets cuBLAS set itself up.
        self._lengths.zero_()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(bucket, choose=choose)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(bucket, choose=choose)
        self._pool = self._pool or graph.pool()
        self._ids.copy_(kept[0])
        self._lengths.copy_(kept[1])
        return graph

    def _step(self, bucket: _Bucket, *, choose: bool) -> None:
        count, eps = bucket.count, self.spec.norm_eps
        torch.index_select(self.weights.embedding, 0, self._ids[:count].clamp(min=0), out=bucket.hidden)
        self._scale_embedding(bucket.hidden)
        layer_step = self._one if count == 1 else self._few if count <= _SKINNY else self._many
        for index, layer in enumerate(self.weights.layers):
            layer_step(bucket, index, layer)
        norm(bucket.hidden, self.weights.norm, eps, bucket.normed)
        if choose:
            self._head(bucket.normed, bucket.logits)
            greedy(bucket.logits, self._ids[:count], self._lengths[:count], bucket.best)

    def _one(self, bucket: _Bucket, index: int, layer: LayerWeights) -> None:
        eps, hidden = self.spec.norm_eps, bucket.hidden
        qkv, output, gate_up, down = (_dense(linear) for linear in _linears(layer))
        matvec(hidden, qkv.weight, bias=qkv.bias, norm=layer.attention_norm, eps=eps, out=bucket.qkv)
        self._attend(bucket, index, layer)
        matvec(bucket.attended, output.weight, bias=output.bias, residual=hidden, out=hidden)
        matvec(
            hidden, gate_up.weight, bias=gate_up.bias, norm=layer.mlp_norm, eps=eps, gated=True, out=bucket.activated
        )
        matvec(bucket.activated, down.weight, bias=down.bias, residual=hidden, out=hidden)

    def _few(self, bucket: _Bucket, index: int, layer: LayerWeights) -> None:
        eps, hidden, normed = self.spec.norm_eps, bucket.hidden, bucket.normed
        qkv, output, gate_up, down = (_dense(linear) for linear in _linears(layer))
        skinny(norm(hidden, layer.attention_norm, eps, normed), qkv.weight, bias=qkv.bias, out=bucket.qkv)
        self._attend(bucket, index, layer)
        skinny(bucket.attended, output.weight, bias=output.bias, residual=hidden, out=hidden)
        norm(hidden, layer.mlp_norm, eps, normed)
        skinny(normed, gate_up.weight, bias=gate_up.bias, gated=True, out=bucket.activated)
        skinny(bucket.activated, down.weight, bias=down.bias, residual=hidden, out=hidden)

    def _many(self, bucket: _Bucket, index: int, layer: LayerWeights) -> None:
        eps, hidden, normed = self.spec.norm_eps, bucket.hidden, bucket.normed
        qkv, output, gate_up, down = (_dense(linear) for linear in _linears(layer))
        _product(norm(hidden, layer.attention_norm, eps, normed), qkv, bucket.qkv)
        self._attend(bucket, index, layer)
        _add_product(hidden, bucket.attended, output)
        _product(norm(hidden, layer.mlp_norm, eps, normed), gate_up, bucket.gate_up)
        _add_product(hidden, gate(bucket.gate_up, bucket.activated), down)

    def _prefill(self, batch: DeviceBatch) -> torch.Tensor:
        spec, eps = self.spec, self.spec.norm_eps
        hidden = F.embedding(batch.ids, self.weights.embedding)
        self._scale_embedding(hidden)
        normed, attended = torch.empty_like(hidden), hidden.new_empty(len(hidden), spec.q_size)
        activated = hidden.new_empty(len(hidden), spec.intermediate_size)
        whole = hidden.new_empty(len(hidden), max(spec.qkv_size, 2 * spec.intermediate_size))
        turned = whole.view(-1)[: len(hidden) * spec.qkv_size].view(len(hidden), -1)
        gate_up = whole.view(-1)[: len(hidden) * 2 * spec.intermediate_size].view(len(hidden), -1)
        tiles = torch.tensor(query_tiles(list(batch.counts)), dtype=torch.int32).to(self.device, non_blocking=True)
        for index, layer in enumerate(self.weights.layers):
            own, keys, values = spec.layer(index), self._keys[index], self._values[index]
            qkv, output, up, down = (_dense(linear) for linear in _linears(layer))
            _product(norm(hidden, layer.attention_norm, eps, normed), qkv, turned)
            rope_store(
                turned, *self._turn(own), batch.positions, batch.slots, keys, values, norms=_norms(layer), eps=eps
            )
            prefill_attention(
                turned, batch.starts, batch.lengths, batch.block_tables, keys, values, tiles, attended,
                scale=spec.scale, window=own.window, softcap=spec.softcap,
            )  # fmt: skip
            _add_product(hidden, attended, output)
            _product(norm(hidden, layer.mlp_norm, eps, normed), up, gate_up)
            _add_product(hidden, gate(gate_up, activated), down)
        return norm(hidden, self.weights.norm, eps, normed)

    def _attend(self, bucket: _Bucket, index: int, layer: LayerWeights) -> None:
        own = self.spec.layer(index)
        decode_attention(
            bucket.qkv, *self._turn(own), self._lengths[: bucket.count], self._blocks, self._keys[index],
            self._values[index], bucket.scratch, bucket.attended, scale=self.spec.scale, window=own.window,
            softcap=self.spec.softcap, norms=_norms(layer), eps=self.spec.norm_eps,
        )  # fmt: skip

    def _head(self, normed: torch.Tensor, logits: torch.Tensor) -> None:
        head = _dense(self.weights.head)
        if len(normed) <= _SKINNY:
            (matvec if len(normed) == 1 else skinny)(normed, head.weight, bias=head.bias, out=logits)
        elif self.device.type == "cuda" and head.bias is None:
            torch.mm(normed, head.weight.T, out_dtype=torch.float32, out=logits)
        else:
            logits.copy_(head(normed))

    def _scale_embedding(self, hidden: torch.Tensor) -> None:
        if self.spec.embedding_scale != 1.0:
            # The factor is rounded first, as where these models come from.
            hidden.mul_(torch.tensor(self.spec.embedding_scale, dtype=self.dtype).item())

    def _turn(self, layer: LayerSpec) -> tuple[torch.Tensor, torch.Tensor]:
        assert layer.rope is not None
        return self._tables[layer.rope]


def _angles(rope: RopeSpec, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, float32 (length, rope.dim / 2)."""
    cos, sin = rope_tables(rope, length, torch.float32, device)
    half = rope.dim // 2
    return cos[:, 0, half:].contiguous(), sin[:, 0, half:].contiguous()


def _dense(linear: Linear | None) -> DenseLinear:
    assert isinstance(linear, DenseLinear)
    return linear


def _norms(layer: LayerWeights) -> tuple[torch.Tensor, torch.Tensor] | None:
    return None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)


def _product(x: torch.Tensor, linear: DenseLinear, out: torch.Tensor) -> None:
    if linear.bias is None:
        torch.mm(x, linear.weight.T, out=out)
    else:
        torch.addmm(linear.bias, x, linear.weight.T, out=out)


def _add_product(hidden: torch.Tensor, x: torch.Tensor, linear: DenseLinear) -> None:
    if linear.bias is not None:
        hidden.add_(linear.bias)
    hidden.addmm_(x, linear.weight.T)
