"""The decoder on an NVIDIA GPU: Triton kernels and cuBLAS, all but large steps captured in CUDA graphs.

A decode step is bound by reading the weights once. For one sequence every product is a matrix-vector kernel, for up to
32 a matrix kernel that reads each weight once, both with what surrounds the product fused in; beyond that cuBLAS is as
fast.
Steps may follow one another on the device, each feeding its tokens to the next, while the host is elsewhere.

Importing this module needs Triton.
"""

import functools
from collections.abc import Callable

import torch

from tuneserve.kernels.gpu.decode_attention import decode_attention
from tuneserve.kernels.gpu.greedy import greedy
from tuneserve.kernels.gpu.norm import norm
from tuneserve.kernels.gpu.prefill_attention import prefill_attention
from tuneserve.kernels.gpu.rope_store import rope_store
from tuneserve.kernels.sampled_rows import SampledRows
from tuneserve.model._gpu_bucket import Bucket, Graphs, Rows
from tuneserve.model._gpu_linear import Norm
from tuneserve.model._gpu_lora import GpuAdapters, adapted
from tuneserve.model._gpu_packed import Bits
from tuneserve.model._gpu_prompts import Prompts, PromptStep
from tuneserve.model._gpu_sampler import GpuSampler
from tuneserve.model._gpu_weights import GpuLayer, gpu_weights
from tuneserve.model._lora import AdapterWeights
from tuneserve.model._paged import DeviceBatch
from tuneserve.model._rope import half_tables
from tuneserve.model._sampled import Chosen
from tuneserve.model._weights import Weights
from tuneserve.spec import LayerSpec, ModelSpec

# Of the cache; room for the tables of larger ones is room to spare.
_LEAST_BLOCK = 16


class GpuDecoder:
    """A loaded model on a GPU (on the CPU in Triton's interpreter), for positions below ``context_length``.

    Args:
        spec: a model that :func:`~tuneserve.model._gpu_reasons.gpu_reasons_against` has nothing against.
        weights: its weights, of which the dense ones stay in use.
        sequences: how many may decode together.
        bits: int8 or int4 to quantise the linear weights, in groups of 32 (int4 leaves the head at int8).
        keep: whether, where ``bits`` is None, deferred weights stay in the few bits that they are stored in, if a
            kernel computes with these.

    Raises:
        InputError: a deferred weight cannot be read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        context_length: int,
        sequences: int,
        *,
        bits: Bits | None = None,
        keep: bool = True,
    ) -> None:
        self.spec, self.context_length = spec, context_length
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._adapters = GpuAdapters(spec, self.dtype, self.device)
        self.weights = adapted(gpu_weights(weights, bits, keep=keep), self._adapters)
        self._keys = self._values = torch.empty(0)
        ropes = {layer.rope for layer in spec.per_layer if layer.rope}
        self._tables = {rope: half_tables(rope, context_length, self.device) for rope in ropes}
        blocks = -(-context_length // _LEAST_BLOCK)
        self._ids = torch.zeros(sequences, dtype=torch.int64, device=self.device)
        self._lengths = torch.zeros(sequences, dtype=torch.int32, device=self.device)
        self._blocks = torch.zeros(sequences, blocks, dtype=torch.int32, device=self.device)
        self._sizes = sorted({1, 2, 4, 8, 16, 24, *range(32, sequences, 32), sequences})
        self._buckets: dict[int, Bucket] = {}
        self._sampler = GpuSampler(sequences, spec.vocab_size, self.device)
        self._prompts = Prompts(spec, blocks, self.dtype, self.device)
        self._graphs = Graphs((self._ids, self._lengths), self._lengths)

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
            self._run(bucket, None)
            return bucket.rows.normed[: len(batch.counts)]
        return self._prefill(batch)

    def prepare_adapter(self, adapter: AdapterWeights) -> AdapterWeights:
        """Return what :meth:`put_adapter` takes."""
        return adapter

    @torch.inference_mode()
    def put_adapter(self, slot: int, adapter: AdapterWeights) -> None:
        """Let rows with ``slot`` be computed with this adapter.

        Raises:
            AdapterError: there is not enough memory.
        """
        if self._adapters.put(slot, adapter):
            self._graphs.forget()

    def drop_adapter(self, slot: int) -> None:
        """Free what is in a slot."""
        if self._adapters.drop(slot):
            self._graphs.forget()

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary) of hidden states (tokens, hidden)."""
        logits = hidden.new_empty(len(hidden), self.spec.vocab_size, dtype=torch.float32)
        self.weights.head.product(hidden.contiguous(), logits)
        self._scale_logits(logits)
        return logits

    @torch.inference_mode()
    def decode_greedily(self, batch: DeviceBatch, keys: torch.Tensor, values: torch.Tensor, steps: int) -> torch.Tensor:
        """Continue each sequence of a batch of single tokens by ``steps`` tokens, the likeliest each time.

        The block tables must have room for them. Tokens are int64 (steps, sequences), -1 for numbers not finite.
        """
        self._use(keys, values)
        self._enter(batch)
        return self._choose(len(batch.counts), steps)

    @torch.inference_mode()
    def go_on_greedily(
        self, block_tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, steps: int
    ) -> torch.Tensor:
        """Continue the sequences of the call before by ``steps`` tokens more, int64 (steps, sequences).

        Their blocks lie in ``block_tables`` now, int32 (sequences, blocks).
        """
        self._use(keys, values)
        self._blocks[: len(block_tables), : block_tables.shape[1]] = block_tables
        return self._choose(len(block_tables), steps)

    @torch.inference_mode()
    def sample(self, hidden: torch.Tensor, rows: SampledRows) -> Chosen:
        """Choose a token after each of some hidden states (rows, hidden), as many as may decode together at most."""
        logits = self.logits(hidden)
        self._ask(rows)
        return self._sampler.once(logits)

    @torch.inference_mode()
    def decode_sampled(self, batch: DeviceBatch, keys: torch.Tensor, values: torch.Tensor, rows: SampledRows) -> Chosen:
        """Continue each sequence of a batch of single tokens by as many tokens as there are random numbers for it."""
        self._use(keys, values)
        self._enter(batch)
        self._ask(rows)
        return self._sample(*rows.uniforms.shape)

    @torch.inference_mode()
    def go_on_sampling(
        self, block_tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, uniforms: torch.Tensor
    ) -> Chosen:
        """Continue the sequences of the call before by as many tokens as there are ``uniforms``, float64, for each."""
        self._use(keys, values)
        self._blocks[: len(block_tables), : block_tables.shape[1]] = block_tables
        self._sampler.feed(uniforms)
        return self._sample(*uniforms.shape)

    def _ask(self, rows: SampledRows) -> None:
        if self._sampler.enter(rows):
            self._graphs.forget()

    def _use(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        assert not self._keys.numel() or self._keys.data_ptr() == keys.data_ptr(), "the graphs are over another cache"
        self._keys, self._values = keys, values

    def _enter(self, batch: DeviceBatch) -> Bucket:
        count = len(batch.counts)
        bucket = self._bucket(count)
        self._adapters.enter(batch.adapters, bucket.count)
        self._ids[:count] = batch.ids
        self._lengths[:count] = batch.lengths
        self._lengths[count : bucket.count] = 0
        self._blocks[:count, : batch.block_tables.shape[1]] = batch.block_tables
        return bucket

    def _bucket(self, count: int) -> Bucket:
        size = next(size for size in self._sizes if size >= count)
        if size not in self._buckets:
            self._buckets[size] = Bucket(self.spec, size, self.dtype, self.device)
        return self._buckets[size]

    def _choose(self, count: int, steps: int) -> torch.Tensor:
        bucket = self._bucket(count)
        chosen = self._ids.new_empty(steps, count)
        for step in range(steps):
            self._run(bucket, self._greedily)
            chosen[step] = self._ids[:count]
        return chosen

    def _sample(self, count: int, steps: int) -> Chosen:
        bucket = self._bucket(count)
        chosen = self._sampler.room(steps, count)
        for step in range(steps):
            self._run(bucket, self._sampling, self._sampler.asks)
            chosen.tokens[step] = self._ids[:count]
            self._sampler.keep(chosen, step)
        return chosen

    def _greedily(self, bucket: Bucket) -> None:
        greedy(bucket.logits, self._ids[: bucket.count], self._lengths[: bucket.count], bucket.best)

    def _sampling(self, bucket: Bucket) -> None:
        self._scale_logits(bucket.logits)
        self._sampler.choose(bucket.logits, self._ids[: bucket.count], self._lengths[: bucket.count])

    def _run(self, bucket: Bucket, choose: Callable[[Bucket], None] | None, *asks: object) -> None:
        way = choose and choose.__name__
        key = ("decode", bucket.count, way, self._adapters.rows is not None, *asks)
        self._graphs.run(key, lambda: self._step(bucket, choose))

    def _step(self, bucket: Bucket, choose: Callable[[Bucket], None] | None) -> None:
        count = bucket.count
        self._adapters.start()
        torch.index_select(self.weights.embedding, 0, self._ids[:count].clamp(min=0), out=bucket.rows.hidden)
        self._scale_embedding(bucket.rows.hidden)
        for index, layer in enumerate(self.weights.layers):
            self._layer(layer, bucket.rows, functools.partial(self._attend, bucket, index, layer))
        norm(bucket.rows.hidden, self.weights.norm, self.spec.norm_eps, bucket.rows.normed)
        if choose is not None:
            self.weights.head.product(bucket.rows.normed, bucket.logits)
            choose(bucket)

    def _layer(self, layer: GpuLayer, rows: Rows, attend: Callable[[], None]) -> None:
        eps, hidden = self.spec.norm_eps, rows.hidden
        layer.qkv.product(hidden, rows.qkv, Norm(layer.attention_norm, eps, rows.normed))
        attend()
        layer.output.add(rows.attended, hidden)
        activated = layer.gate_up.gated(hidden, rows.activated, rows.gate_up, Norm(layer.mlp_norm, eps, rows.normed))
        layer.down.add(activated, hidden)

    def _prefill(self, batch: DeviceBatch) -> torch.Tensor:
        step = self._prompts.step(batch)
        self._adapters.enter(batch.adapters, len(step.ids))
        if step.key is None:
            self._prompt_step(step)
        else:
            self._graphs.run((*step.key, self._adapters.rows is not None), lambda: self._prompt_step(step))
        return step.rows.normed[: len(batch.ids)]

    def _prompt_step(self, step: PromptStep) -> None:
        self._adapters.start()
        torch.index_select(self.weights.embedding, 0, step.ids, out=step.rows.hidden)
        self._scale_embedding(step.rows.hidden)
        for index, layer in enumerate(self.weights.layers):
            self._layer(layer, step.rows, functools.partial(self._attend_prompts, step, index, layer))
        norm(step.rows.hidden, self.weights.norm, self.spec.norm_eps, step.rows.normed)

    def _attend_prompts(self, step: PromptStep, index: int, layer: GpuLayer) -> None:
        own, keys, values = self.spec.layer(index), self._keys[index], self._values[index]
        rope_store(
            step.rows.qkv, *self._turn(own), step.positions, step.slots, keys, values, norms=layer.head_norms,
            eps=self.spec.norm_eps,
        )  # fmt: skip
        prefill_attention(
            step.rows.qkv, step.starts, step.lengths, step.block_tables, keys, values, step.tiles, step.rows.attended,
            scale=self.spec.scale, window=own.window, softcap=self.spec.softcap,
        )  # fmt: skip

    def _attend(self, bucket: Bucket, index: int, layer: GpuLayer) -> None:
        own = self.spec.layer(index)
        decode_attention(
            bucket.rows.qkv, *self._turn(own), self._lengths[: bucket.count], self._blocks, self._keys[index],
            self._values[index], bucket.scratch, bucket.rows.attended, scale=self.spec.scale, window=own.window,
            softcap=self.spec.softcap, norms=layer.head_norms, eps=self.spec.norm_eps,
        )  # fmt: skip

    def _scale_embedding(self, hidden: torch.Tensor) -> None:
        if self.spec.embedding_scale != 1.0:
            # The factor is rounded first, as where these models come from.
            hidden.mul_(torch.tensor(self.spec.embedding_scale, dtype=self.dtype).item())

    def _scale_logits(self, logits: torch.Tensor) -> None:
        if self.spec.logit_scale != 1.0:
            logits.mul_(self.spec.logit_scale)
        if self.spec.logit_softcap is not None:
            logits.div_(self.spec.logit_softcap).tanh_().mul_(self.spec.logit_softcap)

    def _turn(self, layer: LayerSpec) -> tuple[torch.Tensor, torch.Tensor]:
        assert layer.rope is not None
        return self._tables[layer.rope]
