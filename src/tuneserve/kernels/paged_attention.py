"""Attention of a flat batch of sequences over a key-value cache in blocks (arXiv:2309.06180)."""

import torch

from tuneserve.kernels.attention import attend


class PagedAttention:
    """Prepared once for a batch, called once for each layer.

    Cache tensors are (blocks, kv_heads, block_size, head_dim); blocks that tables name must hold finite numbers even
    where nothing was stored, because what a mask hides is multiplied by zero.

    Args:
        slots: block * block_size + offset where each row's key and value go, int64 (rows).
        starts: the first row of each sequence and the number of rows, int32 (sequences + 1).
        lengths: tokens of each sequence, those of the batch included, int32 (sequences).
        block_tables: the blocks that hold them, in order, int32 (sequences, blocks).
        decodes: so many sequences, the first ones, have one row each.
        block_size: tokens per block.
    """

    def __init__(
        self,
        slots: torch.Tensor,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        block_tables: torch.Tensor,
        decodes: int,
        block_size: int,
    ) -> None:
        self._decodes = decodes
        self._block_size = block_size
        self._slot_blocks, self._slot_offsets = slots // block_size, slots % block_size
        self._lengths = lengths[:decodes, None]
        self._longest = int(self._lengths.max()) if decodes else 0
        self._uneven = decodes > 0 and int(self._lengths.min()) < self._longest
        self._tables = block_tables[:decodes, : -(-self._longest // block_size)]
        bounds = starts[decodes:].tolist()
        self._prompts = list(zip(bounds, bounds[1:], lengths[decodes:].tolist(), block_tables[decodes:], strict=False))
        self._gathers: dict[tuple[int, int], torch.Tensor] = {}
        self._masks: dict[tuple[int, int | None, torch.dtype], torch.Tensor | None] = {}

    def __call__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Store new keys and values, then let each row attend to its own sequence up to itself.

        Args:
            keys, values: the layer's cache.
            query: (rows, heads, head_dim).
            key, value: (rows, kv_heads, head_dim); None if they are in the cache already.
            window: a row sees itself and so many before it less one; None is all of them.
            scale, softcap, sinks: see :func:`tuneserve.kernels.attention.attend`.

        Returns:
            (rows, heads * head_dim).
        """
        if key is not None and value is not None:
            keys[self._slot_blocks, :, self._slot_offsets] = key
            values[self._slot_blocks, :, self._slot_offsets] = value
        attended = []
        if self._decodes:
            out = attend(
                query[: self._decodes, None],
                self._gather(keys, self._tables, -1)[:, :, : self._longest],
                self._gather(values, self._tables, -1)[:, :, : self._longest],
                self._mask(-1, window, query.dtype),
                scale=scale,
                softcap=softcap,
                sinks=sinks,
            )
            attended.append(out[:, 0])
        for index, (start, end, length, table) in enumerate(self._prompts):
            mask = self._mask(index, window, query.dtype)
            if length == end - start and key is not None and value is not None:
                context = key[None, start:end].transpose(1, 2), value[None, start:end].transpose(1, 2)
            else:
                tables = table[None, : -(-length // self._block_size)]
                context = (
                    self._gather(keys, tables, index)[:, :, :length],
                    self._gather(values, tables, index)[:, :, :length],
                )
            out = attend(
                query[None, start:end], *context, mask, causal=mask is None, scale=scale, softcap=softcap, sinks=sinks
            )
            attended.append(out[0])
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _gather(self, cache: torch.Tensor, tables: torch.Tensor, prompt: int) -> torch.Tensor:
        """Return (sequences, kv_heads, length, head_dim), ``length`` a multiple of the block size."""
        _, kv_heads, block_size, head_dim = cache.shape
        rows = self._gathers.get((prompt, kv_heads))
        if rows is None:
            # A row is one head of one block, so that a single copy also brings the heads to the front.
            heads = torch.arange(kv_heads, device=tables.device)[:, None]
            rows = self._gathers[prompt, kv_heads] = (tables[:, None].long() * kv_heads + heads).flatten()
        gathered = cache.view(-1, block_size * head_dim).index_select(0, rows)
        return gathered.view(len(tables), kv_heads, -1, head_dim)

    def _mask(self, prompt: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the mask of the decoding sequences (-1) or of a prompt; None where there is nothing to hide."""
        if (prompt, window, dtype) not in self._masks:
            if prompt < 0:
                hides = self._uneven
                length, last = self._longest, self._lengths[:, :, None] - 1
            else:
                start, end, length, _ = self._prompts[prompt]
                hides = length > end - start
                last = torch.arange(length - (end - start), length, device=self._lengths.device)[None, :, None]
            mask = None
            if hides or (window is not None and window < length):
                columns = torch.arange(length, device=last.device)
                seen = columns <= last
                if window is not None:
                    seen &= columns > last - window
                mask = torch.zeros(seen.shape, dtype=dtype, device=last.device).masked_fill_(~seen, -torch.inf)
            self._masks[prompt, window, dtype] = mask
        return self._masks[prompt, window, dtype]
