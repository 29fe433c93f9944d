"""A step as tensors."""

from dataclasses import dataclass

import numpy as np
import torch

from tuneserve.native._blocks import BLOCK_SIZE, blocks_for
from tuneserve.native._scheduler import Step


@dataclass(frozen=True)
class Batch:
    """The tokens of a step, sequence after sequence, those first that decode: one token each.

    Attributes:
        ids: token ids, int64 (tokens).
        positions: of each token in its sequence, int64 (tokens).
        slots: where its key and value go, block * block size + offset, int64 (tokens).
        starts: the first row of each sequence and the number of rows, int32 (sequences + 1).
        lengths: tokens of each sequence that the cache holds after the step, int32 (sequences).
        block_tables: the blocks that hold them, padded with block 0, int32 (sequences, blocks).
        scored_rows: the rows that the sequences want logits of, int64.
        state_slots: where each sequence keeps what it carries beside the cache, int64 (sequences).
        decodes: how many sequences have a single row.
        counts: how many rows each has, on the host.
        begins: which begin with their first token, on the host.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor
    scored_rows: torch.Tensor
    state_slots: torch.Tensor
    decodes: int
    counts: tuple[int, ...]
    begins: tuple[bool, ...]


def make_batch(step: Step, device: torch.device, ahead: int = 0) -> Batch:
    """Return the tensors of a step on ``device``, the block tables with room for ``ahead`` tokens more."""
    segments = step.segments
    lengths = np.array([segment.end for segment in segments], dtype=np.int32)
    starts = np.zeros(len(segments) + 1, dtype=np.int32)
    np.cumsum([segment.count for segment in segments], out=starts[1:])
    tables = np.zeros((len(segments), blocks_for(int(lengths.max()) + ahead)), dtype=np.int32)
    ids = np.empty(starts[-1], dtype=np.int64)
    positions = np.empty(starts[-1], dtype=np.int64)
    for row, (segment, start, end) in enumerate(zip(segments, starts[:-1], starts[1:], strict=True)):
        used = blocks_for(segment.end + ahead)
        tables[row, :used] = np.frombuffer(segment.sequence.blocks, dtype=np.int32, count=used)
        ids[start:end] = segment.sequence.inputs(segment.start, segment.end)
        positions[start:end] = np.arange(segment.start, segment.end)
    rows = np.repeat(np.arange(len(segments)), np.diff(starts))
    slots = tables[rows, positions // BLOCK_SIZE] * np.int64(BLOCK_SIZE) + positions % BLOCK_SIZE
    scored: list[int] = []
    for segment, end in zip(segments, starts[1:].tolist(), strict=True):
        scored += range(end - segment.sequence.scored_rows(segment.start, segment.count), end)

    def tensor(values: "np.ndarray[tuple[int, ...], np.dtype[np.int32] | np.dtype[np.int64]]") -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return Batch(
        ids=tensor(ids),
        positions=tensor(positions),
        slots=tensor(slots),
        starts=tensor(starts),
        lengths=tensor(lengths),
        block_tables=tensor(tables),
        scored_rows=tensor(np.array(scored, dtype=np.int64)),
        state_slots=tensor(np.array([segment.sequence.state_slot for segment in segments], dtype=np.int64)),
        decodes=step.decodes,
        counts=tuple(segment.count for segment in segments),
        begins=tuple(segment.start == 0 for segment in segments),
    )
