"""Runs a step through Transformers: each sequence by itself, on a cache of its own."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from tuneserve.native._choose import Choice, choose
from tuneserve.native._scheduler import Step
from tuneserve.native._sequence import Sequence
from tuneserve.native._transformers import TransformersDecoder


class TransformersRunner:
    """A decoder with a cache per sequence, which lasts as long as the sequence is running."""

    def __init__(self, decoder: TransformersDecoder) -> None:
        self.decoder = decoder
        self.vocab_size = decoder.vocab_size
        # Whoever forgets a sequence frees its cache.
        self.caches: WeakKeyDictionary[Sequence, Any] = WeakKeyDictionary()

    @torch.inference_mode()
    def run(self, step: Step) -> dict[Sequence, list[Choice] | str]:
        """Return what became of the step's sequences, as :meth:`Runner.run` does; their prompts are not in chunks."""
        # What was preempted will be computed anew.
        for sequence in [sequence for sequence in self.caches if not sequence.computed]:
            del self.caches[sequence]
        scored = []
        for segment in step.segments:
            # Not every family can go on with several tokens where a chunk ended.
            assert segment.samples and (segment.start == 0 or segment.count == 1)
            sequence = segment.sequence
            ids = torch.tensor(sequence.inputs(segment.start, segment.end), device=self.decoder.device)
            rows, self.caches[sequence] = self.decoder.forward(ids, self.caches.get(sequence))
            scored.append(rows[segment.count - sequence.scored_rows(segment.start, segment.count) :])
        return choose(self.decoder.logits, torch.cat(scored), step.segments)
