"""Steps with prompts: small ones in buffers of fixed size, so that they too can be captured in CUDA graphs.

Launching some 300 kernels takes the host 20 ms, more than the device needs for a few hundred tokens.
"""

from dataclasses import dataclass

import torch

from tuneserve.kernels.gpu.prefill_attention import QUERIES, query_tiles
from tuneserve.model._gpu_bucket import Rows
from tuneserve.model._paged import DeviceBatch
from tuneserve.spec import ModelSpec

_TOKENS = (16, 32, 64, 128, 256, 512)
_SEQUENCES = (1, 8, 64, 512)


@dataclass(frozen=True)
class PromptStep:
    """A step's tokens as in :class:`~tuneserve.model._paged.DeviceBatch`, their rows, and the tiles of its attention.

    ``key`` names the sizes where these are buffers, in which case there may be rows of no token, which are stored in
    block 0, and tiles of no sequence.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor
    tiles: torch.Tensor
    rows: Rows
    key: tuple[str, int, int] | None = None


class Prompts:
    """Makes steps with prompts, small ones in buffers.

    Args:
        spec: the model.
        blocks: of the longest sequence.
        dtype, device: of the hidden states.
    """

    def __init__(self, spec: ModelSpec, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self._spec = spec
        tokens, sequences = _TOKENS[-1], _SEQUENCES[-1]

        def integers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        # Zeros, for rows of no token are computed too.
        self._all = PromptStep(
            ids=integers(tokens, dtype=torch.int64),
            positions=integers(tokens, dtype=torch.int64),
            slots=integers(tokens, dtype=torch.int64),
            starts=integers(sequences + 1),
            lengths=integers(sequences),
            block_tables=integers(sequences, blocks),
            tiles=integers(tokens // QUERIES + sequences, 2),
            rows=Rows.of_prompts(spec, torch.zeros(tokens, spec.hidden_size, dtype=dtype, device=device)),
        )
        self._all.rows.attended.zero_()

    def step(self, batch: DeviceBatch) -> PromptStep:
        """Return the step of a batch, valid until the next one."""
        count, sequences = len(batch.ids), len(batch.counts)
        tiles = query_tiles(list(batch.counts))
        if count > _TOKENS[-1] or sequences > _SEQUENCES[-1]:
            hidden = self._all.rows.hidden.new_empty(count, self._spec.hidden_size)
            return PromptStep(
                batch.ids, batch.positions, batch.slots, batch.starts, batch.lengths, batch.block_tables,
                _on(tiles, batch.ids.device), Rows.of_prompts(self._spec, hidden),
            )  # fmt: skip
        size = next(size for size in _TOKENS if size >= count)
        most = next(most for most in _SEQUENCES if most >= sequences)
        tiles += [(-1, 0)] * (size // QUERIES + most - len(tiles))
        step = self._cut(size, most, len(tiles))
        step.ids[:count] = batch.ids
        step.positions[:count] = batch.positions
        step.slots[:count] = batch.slots
        step.slots[count:] = 0
        step.starts[: sequences + 1] = batch.starts
        step.lengths[:sequences] = batch.lengths
        step.block_tables[:sequences, : batch.block_tables.shape[1]] = batch.block_tables
        step.tiles.copy_(_on(tiles, batch.ids.device))
        return step

    def _cut(self, size: int, most: int, tiles: int) -> PromptStep:
        every = self._all
        return PromptStep(
            every.ids[:size],
            every.positions[:size],
            every.slots[:size],
            every.starts[: most + 1],
            every.lengths[:most],
            every.block_tables[:most],
            every.tiles[:tiles],
            Rows(*(one[:size] for one in vars(every.rows).values())),
            ("prompts", size, most),
        )


def _on(tiles: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(tiles, dtype=torch.int32)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
