"""A step as tensors."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from tuneserve.native._blocks import BLOCK_SIZE, blocks_for
from tuneserve.native._scheduler import Step
from tuneserve.native._sequence import Sequence

_Integers = np.ndarray[tuple[int, ...], np.dtype[np.int32] | np.dtype[np.int64]]


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
        adapters: the slot of each token's adapter, -1 for the base, int32 (tokens); None if all are of the base.
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
    adapters: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the same with its tensors, which are on the CPU, on ``device``."""
        moved: dict[str, Any] = {
            field.name: to_device(value, device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)


def make_batch(step: Step, device: torch.device, ahead: int = 0) -> Batch:
    """Return the tensors of a step on ``device``, the block tables with room for ``ahead`` tokens more."""
    segments = step.segments
    lengths = np.array([segment.end for segment in segments], dtype=np.int32)
    starts = np.zeros(len(segments) + 1, dtype=np.int32)
    np.cumsum([segment.count for segment in segments], out=starts[1:])
    tables = _tables([segment.sequence for segment in segments], [segment.end + ahead for segment in segments])
    ids = np.empty(starts[-1], dtype=np.int64)
    positions = np.empty(starts[-1], dtype=np.int64)
    for segment, start, end in zip(segments, starts[:-1], starts[1:], strict=True):
        ids[start:end] = segment.sequence.inputs(segment.start, segment.end)
        positions[start:end] = np.arange(segment.start, segment.end)
    rows = np.repeat(np.arange(len(segments)), np.diff(starts))
    slots = tables[rows, positions // BLOCK_SIZE] * np.int64(BLOCK_SIZE) + positions % BLOCK_SIZE
    adapters = np.array([segment.sequence.slot for segment in segments], dtype=np.int32)
    scored: list[int] = []
    for segment, end in zip(segments, starts[1:].tolist(), strict=True):
        scored += range(end - segment.sequence.scored_rows(segment.start, segment.count), end)
    return Batch(
        ids=_tensor(ids, device),
        positions=_tensor(positions, device),
        slots=_tensor(slots, device),
        starts=_tensor(starts, device),
        lengths=_tensor(lengths, device),
        block_tables=_tensor(tables, device),
        scored_rows=_tensor(np.array(scored, dtype=np.int64), device),
        state_slots=_tensor(np.array([segment.sequence.state_slot for segment in segments], dtype=np.int64), device),
        decodes=step.decodes,
        counts=tuple(segment.count for segment in segments),
        begins=tuple(segment.start == 0 for segment in segments),
        adapters=_tensor(adapters[rows], device) if (adapters >= 0).any() else None,
    )


def block_tables(sequences: Collection[Sequence], ahead: int, device: torch.device) -> torch.Tensor:
    """Return the blocks that hold what is computed of each sequence and ``ahead`` tokens more, as in a batch."""
    return _tensor(_tables(sequences, [sequence.computed + ahead for sequence in sequences]), device)


def _tables(sequences: Collection[Sequence], lengths: list[int]) -> _Integers:
    tables = np.zeros((len(sequences), blocks_for(max(lengths))), dtype=np.int32)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        used = blocks_for(length)
        tables[row, :used] = np.frombuffer(sequence.blocks, dtype=np.int32, count=used)
    return tables


def _tensor(values: _Integers, device: torch.device) -> torch.Tensor:
    return to_device(torch.from_numpy(values), device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on ``device``, without waiting for that."""
    # From pageable memory the host would wait until the device comes to the copy.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
