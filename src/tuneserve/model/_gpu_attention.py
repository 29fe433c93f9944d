"""Attention in the layers of a decoder on a GPU: positions, the store to the cache, and what a layer says of both.

Importing this module needs Triton.
"""

import torch

from tuneserve.kernels.gpu.decode_attention import decode_attention
from tuneserve.kernels.gpu.prefill_attention import prefill_attention
from tuneserve.kernels.gpu.rope_store import rope_store
from tuneserve.model._gpu_bucket import Bucket
from tuneserve.model._gpu_prompts import PromptStep
from tuneserve.model._gpu_weights import GpuLayer
from tuneserve.model._rope import half_tables, query_scales
from tuneserve.spec import ModelSpec, RopeSpec


class GpuAttention:
    """The attention of all layers of a model, for positions below ``context_length``.

    In its methods ``keys`` and ``values`` are the cache of layer ``index``, (blocks, kv_heads, block_size, head_dim).
    """

    def __init__(self, spec: ModelSpec, context_length: int, device: torch.device) -> None:
        self._spec = spec
        ropes = {layer.rope for layer in spec.per_layer if layer.rope}
        self._tables = {rope: half_tables(rope, context_length, device) for rope in ropes}
        self._query_scales = None
        if spec.query_scaling is not None:
            self._query_scales = query_scales(spec.query_scaling, context_length, torch.float32, device).view(-1)

    def decode(
        self, bucket: Bucket, index: int, layer: GpuLayer, lengths: torch.Tensor, blocks: torch.Tensor,
        keys: torch.Tensor, values: torch.Tensor,
    ) -> None:  # fmt: skip
        """Attend from the newest token of each sequence.

        Args:
            bucket: whose rows have queries, keys and values, and where the result is put.
            index: the layer's number.
            layer: its weights.
            lengths: int32 (sequences), the new token counted, 0 where there is no sequence.
            blocks: int32 (sequences or more, blocks), where they lie.
            keys, values: the layer's cache.
        """
        spec, own = self._spec, self._spec.layer(index)
        decode_attention(
            bucket.rows.qkv, *self._turn(own.rope), lengths, blocks, keys, values, bucket.scratch, bucket.rows.attended,
            scale=spec.scale, window=own.window, softcap=spec.softcap, norms=layer.head_norms, eps=spec.norm_eps,
            query_scales=self._query_scales, sinks=layer.sinks,
        )  # fmt: skip

    def prompts(self, step: PromptStep, index: int, layer: GpuLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Attend from all tokens of a step with prompts."""
        spec, own, rows = self._spec, self._spec.layer(index), step.rows
        rope_store(
            rows.qkv, *self._turn(own.rope), step.positions, step.slots, keys, values, norms=layer.head_norms,
            eps=spec.norm_eps, query_scales=self._query_scales,
        )  # fmt: skip
        prefill_attention(
            rows.qkv, step.starts, step.lengths, step.block_tables, keys, values, step.tiles, rows.attended,
            scale=spec.scale, window=own.window, softcap=spec.softcap, sinks=layer.sinks,
        )  # fmt: skip

    def _turn(self, rope: RopeSpec | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return (None, None) if rope is None else self._tables[rope]
