"""The decoder on an NVIDIA GPU: Triton kernels and cuBLAS, decode steps captured in CUDA graphs.

A decode step is bound by reading the weights once. For one sequence every product is a matrix-vector kernel, for up to 32 a
matrix kernel that reads each weight once, both with the gate or the residual fused in; beyond that cuBLAS is as fast.
A step feeds its tokens to the next on the device, so that the host may be a step behind.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tuneserve.kernels.gpu.decode_attention import DecodeScratch, decode_attention
from tuneserve.kernels.gpu.gate import gate
from tuneserve.kernels.gpu.greedy import greedy, greedy_scratch
from tuneserve.kernels.gpu.matvec import matvec
from tuneserve.kernels.gpu.norm import norm
from tuneserve.kernels.gpu.prefill_attention import prefill_attention
from tuneserve.kernels.gpu.rope_store import rope_store
from tuneserve.kernels.gpu.skinny import skinny
from tuneserve.model._rope import frequencies
from tuneserve.model._weights import LayerWeights, Weights
from tuneserve.spec import ModelSpec

# Enough programs for every multiprocessor of the largest GPUs to have two.
_PROGRAMS = 264
_MOST_SPLITS = 32
_SKINNY = 32
FUSED = False


@dataclass(frozen=True)
class PrefillBatch:
    """New tokens of several sequences, on the device; see :func:`~tuneserve.kernels.gpu.prefill_attention`."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor
    tiles: torch.Tensor


class _Bucket:
    """The buffers of decode steps of up to ``count`` sequences, and the graph over them once it is captured."""

    def __init__(self, decoder: "GpuDecoder", count: int) -> None:
        spec, device, dtype = decoder.spec, decoder.device, decoder.dtype
        self.count = count
        self.normed = torch.empty(count, spec.hidden_size, dtype=dtype, device=device)
        self.hidden = torch.empty_like(self.normed)
        self.qkv = torch.empty(count, spec.qkv_size, dtype=dtype, device=device)
        self.attended = torch.empty(count, spec.heads * spec.head_dim, dtype=dtype, device=device)
        self.gate_up = torch.empty(count, 2 * spec.intermediate_size, dtype=dtype, device=device)
        self.activated = torch.empty(count, spec.intermediate_size, dtype=dtype, device=device)
        self.logits = torch.empty(count, spec.vocab_size, device=device)
        self.best = greedy_scratch(count, device)
        splits = max(1, min(_MOST_SPLITS, _PROGRAMS // (count * spec.kv_heads)))
        self.scratch = DecodeScratch.of(count, spec.heads, spec.kv_heads, spec.head_dim, splits, device)
        self.graph: torch.cuda.CUDAGraph | None = None


class GpuDecoder:
    """A loaded model over a paged cache.

    Args:
        keys, values: (layers, blocks, kv_heads, block_size, head_dim).
        sequences: how many may decode together.
        blocks: how many blocks a sequence may have.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        context_length: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        sequences: int,
        blocks: int,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.keys, self.values = keys, values
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        angles = torch.outer(torch.arange(context_length, dtype=torch.float32), frequencies(spec)).to(self.device)
        self._cos, self._sin = angles.cos(), angles.sin()
        self.ids = torch.zeros(sequences, dtype=torch.int64, device=self.device)
        self.lengths = torch.zeros(sequences, dtype=torch.int32, device=self.device)
        self.tables = torch.zeros(sequences, blocks, dtype=torch.int32, device=self.device)
        self._buckets: dict[int, _Bucket] = {}
        self._pool: tuple[int, int] | None = None

    @torch.inference_mode()
    def prefill(self, batch: PrefillBatch) -> torch.Tensor:
        """Return the hidden states of new tokens before the last norm, (tokens, hidden)."""
        spec, eps = self.spec, self.spec.norm_eps
        hidden = F.embedding(batch.ids, self.weights.embedding)
        normed, attended = torch.empty_like(hidden), hidden.new_empty(len(hidden), spec.heads * spec.head_dim)
        activated = hidden.new_empty(len(hidden), spec.intermediate_size)
        for index, layer in enumerate(self.weights.layers):
            keys, values = self.keys[index], self.values[index]
            qkv = F.linear(norm(hidden, layer.attention_norm, eps, normed), layer.qkv)
            rope_store(qkv, self._cos, self._sin, batch.positions, batch.slots, keys, values)
            prefill_attention(
                qkv, batch.starts, batch.lengths, batch.tables, keys, values, batch.tiles, attended
            )
            hidden.addmm_(attended, layer.output.T)
            gate_up = F.linear(norm(hidden, layer.mlp_norm, eps, normed), layer.gate_up)
            hidden.addmm_(gate(gate_up, activated), layer.down.T)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary) of what :meth:`prefill` returned."""
        normed = norm(hidden, self.weights.norm, self.spec.norm_eps, torch.empty_like(hidden))
        return torch.mm(normed, self.weights.head.T, out_dtype=torch.float32)

    @torch.inference_mode()
    def decode(self, count: int) -> torch.Tensor:
        """Run one step of the first ``count`` sequences and return their float32 logits (count, vocabulary).

        It takes ``ids``, the newest token of each sequence, ``lengths``, which count it, and ``tables``; then puts the
        likeliest next token into ``ids`` and adds one to ``lengths``, so that a greedy step may follow at once. Rows of
        no length do nothing.
        """
        bucket = self._buckets.get(count) or self._buckets.setdefault(count, _Bucket(self, count))
        if bucket.graph is None:
            bucket.graph = self._capture(bucket)
        bucket.graph.replay()
        return bucket.logits

    def _capture(self, bucket: _Bucket) -> torch.cuda.CUDAGraph:
        kept = self.ids.clone(), self.lengths.clone()
        # Without sequences nothing is written; it compiles the kernels and lets cuBLAS set itself up.
        self.lengths.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(bucket)
        self._pool = self._pool or graph.pool()
        self.ids.copy_(kept[0])
        self.lengths.copy_(kept[1])
        return graph

    def _step(self, bucket: _Bucket) -> None:
        count = bucket.count
        ids, lengths = self.ids[:count], self.lengths[:count]
        torch.index_select(self.weights.embedding, 0, ids, out=bucket.hidden)
        run = self._few if count <= _SKINNY else self._many
        for index, layer in enumerate(self.weights.layers):
            run(bucket, index, layer)
        norm(bucket.hidden, self.weights.norm, self.spec.norm_eps, bucket.normed)
        if count <= _SKINNY:
            (matvec if count == 1 else skinny)(bucket.normed, self.weights.head, out=bucket.logits)
        else:
            torch.mm(bucket.normed, self.weights.head.T, out_dtype=torch.float32, out=bucket.logits)
        greedy(bucket.logits, ids, lengths, bucket.best)

    def _attend(self, bucket: _Bucket, index: int) -> None:
        decode_attention(
            bucket.qkv, self._cos, self._sin, self.lengths[: bucket.count], self.tables, self.keys[index],
            self.values[index], bucket.scratch, bucket.attended,
        )  # fmt: skip

    def _few(self, bucket: _Bucket, index: int, layer: LayerWeights) -> None:
        eps, hidden, normed = self.spec.norm_eps, bucket.hidden, bucket.normed
        multiply = matvec if bucket.count == 1 else skinny
        if bucket.count == 1 and FUSED:
            matvec(hidden, layer.qkv, norm=layer.attention_norm, eps=eps, out=bucket.qkv)
            self._attend(bucket, index)
            matvec(bucket.attended, layer.output, residual=hidden, out=hidden)
            matvec(hidden, layer.gate_up, norm=layer.mlp_norm, eps=eps, gated=True, out=bucket.activated)
            matvec(bucket.activated, layer.down, residual=hidden, out=hidden)
            return
        multiply(norm(hidden, layer.attention_norm, eps, normed), layer.qkv, out=bucket.qkv)
        self._attend(bucket, index)
        multiply(bucket.attended, layer.output, residual=hidden, out=hidden)
        multiply(norm(hidden, layer.mlp_norm, eps, normed), layer.gate_up, gated=True, out=bucket.activated)
        multiply(bucket.activated, layer.down, residual=hidden, out=hidden)

    def _many(self, bucket: _Bucket, index: int, layer: LayerWeights) -> None:
        eps, hidden, normed = self.spec.norm_eps, bucket.hidden, bucket.normed
        torch.mm(norm(hidden, layer.attention_norm, eps, normed), layer.qkv.T, out=bucket.qkv)
        self._attend(bucket, index)
        hidden.addmm_(bucket.attended, layer.output.T)
        torch.mm(norm(hidden, layer.mlp_norm, eps, normed), layer.gate_up.T, out=bucket.gate_up)
        hidden.addmm_(gate(bucket.gate_up, bucket.activated), layer.down.T)
