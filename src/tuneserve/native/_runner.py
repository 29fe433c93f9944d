"""Runs a step: tokens to the device, through the decoder, to chosen tokens."""

import torch

from tuneserve.model import Decoder
from tuneserve.native._cache import SlotCache, StepAttention
from tuneserve.native._scheduler import Move, Step


class Runner:
    """A decoder with its cache of ``slots`` sequences."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self.decoder = decoder
        self.cache = SlotCache(decoder.spec, slots, decoder.context_length, decoder.dtype, decoder.device)

    @torch.inference_mode()
    def run(self, step: Step) -> torch.Tensor:
        """Return the hidden states of the rows that the step's sequences want scored, (rows, hidden)."""
        ids: list[int] = []
        positions: list[int] = []
        scored: list[int] = []
        for segment in step.segments:
            end = segment.start + segment.count
            ids += segment.sequence.tokens[segment.start : end]
            positions += range(segment.start, end)
            scored += range(len(ids) - segment.sequence.scored_rows(segment.start, segment.count), len(ids))
        device = self.decoder.device
        position_tensor = torch.tensor(positions, device=device)
        attention = StepAttention(self.cache, step, position_tensor)
        hidden = self.decoder.forward(torch.tensor(ids, device=device), position_tensor, attention)
        return hidden if len(scored) == len(ids) else hidden[torch.tensor(scored, dtype=torch.int64, device=device)]

    @torch.inference_mode()
    def move(self, moves: list[Move]) -> None:
        """Make the scheduler's moves in the cache."""
        for move in moves:
            self.cache.move(move)
