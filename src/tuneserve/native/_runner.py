"""Runs a step: tokens to the device, through the decoder, to chosen tokens."""

import torch

from tuneserve.model import Decoder
from tuneserve.native._cache import SlotCache, StepAttention
from tuneserve.native._sampler import sample
from tuneserve.native._scheduler import Move, Step


class Runner:
    """A decoder with its cache of ``slots`` sequences."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self.decoder = decoder
        self.cache = SlotCache(decoder.spec, slots, decoder.context_length, decoder.dtype, decoder.device)

    @torch.inference_mode()
    def run(self, step: Step) -> list[int | None]:
        """Return the chosen token of each segment that samples; None where the model gave no finite logits."""
        ids: list[int] = []
        positions: list[int] = []
        last_rows = []
        for segment in step.segments:
            end = segment.start + segment.count
            ids += segment.sequence.tokens[segment.start : end]
            positions += range(segment.start, end)
            if segment.samples:
                last_rows.append(len(ids) - 1)
        device = self.decoder.device
        position_tensor = torch.tensor(positions, device=device)
        attention = StepAttention(self.cache, step, position_tensor)
        hidden = self.decoder.forward(torch.tensor(ids, device=device), position_tensor, attention)
        if not last_rows:
            return []
        if len(last_rows) < len(ids):
            hidden = hidden[torch.tensor(last_rows, device=device)]
        return sample(self.decoder.logits(hidden), [segment.sequence for segment in step.segments if segment.samples])

    @torch.inference_mode()
    def move(self, moves: list[Move]) -> None:
        """Make the scheduler's moves in the cache."""
        for move in moves:
            self.cache.move(move)
