"""Runs a step: tokens to the device, through the decoder, to chosen tokens."""

import math

import torch

from tuneserve.model import Chosen, Decoder
from tuneserve.native._batch import Batch, block_tables, make_batch
from tuneserve.native._cache import PagedCache, StepAttention
from tuneserve.native._choose import Choice, choose
from tuneserve.native._cpu_step import half_the_threads
from tuneserve.native._decoders import AheadDecoder, AnyDecoder
from tuneserve.native._flight import Flight
from tuneserve.native._sampled import ROOM, sampled_rows, uniforms
from tuneserve.native._sampler import NOT_FINITE
from tuneserve.native._scheduler import Step
from tuneserve.native._sequence import Sequence


class Runner:
    """A decoder with its cache."""

    def __init__(self, decoder: AnyDecoder, blocks: int) -> None:
        self.decoder = decoder
        self.cache = PagedCache(decoder.spec, blocks, decoder.dtype, decoder.device)

    @torch.inference_mode()
    def run(self, step: Step) -> dict[Sequence, list[Choice] | str]:
        """Return what became of sequences: the tokens chosen next, or why there are none.

        A sequence that is not there is still in its prompt.
        """
        with half_the_threads(self.decoder):
            return self._run(step)

    @property
    def vocab_size(self) -> int:
        """How many tokens the model tells the probabilities of."""
        return self.decoder.spec.vocab_size

    def runs_ahead(self, step: Step) -> bool:
        """Whether :meth:`launch` can be used: all sequences decode, and the device can choose for each."""
        if not isinstance(self.decoder, AheadDecoder) or step.decodes < len(step.segments):
            return False
        return all(segment.sequence.steps_alone for segment in step.segments)

    @torch.inference_mode()
    def launch(self, step: Step, steps: int, changes: int) -> Flight:
        """Launch steps of sequences that :meth:`runs_ahead`; each must have blocks for so many tokens."""
        assert isinstance(self.decoder, AheadDecoder)
        self.cache.wipe(step.wiped)
        batch = make_batch(step, self.decoder.device, ahead=steps - 1)
        sequences, caches = tuple(segment.sequence for segment in step.segments), (self.cache.keys, self.cache.values)
        if all(sequence.simply_greedy for sequence in sequences):
            chosen, room = Chosen(self.decoder.decode_greedily(batch, *caches, steps)), math.inf
        else:
            chosen = self.decoder.decode_sampled(batch, *caches, sampled_rows(sequences, steps))
            room = ROOM - steps
        return Flight.of(sequences, changes, chosen, room)

    @torch.inference_mode()
    def follow(self, flight: Flight, steps: int) -> Flight:
        """Launch steps after those of the last flight, which need not have landed, for all of its sequences."""
        assert isinstance(self.decoder, AheadDecoder)
        tables = block_tables(flight.sequences, flight.steps + steps, self.decoder.device)
        caches = (self.cache.keys, self.cache.values)
        if math.isinf(flight.room):
            chosen = Chosen(self.decoder.go_on_greedily(tables, *caches, steps))
        else:
            numbers = uniforms(flight.sequences, flight.steps, steps)
            chosen = self.decoder.go_on_sampling(tables, *caches, numbers)
        return Flight.of(flight.sequences, flight.changes, chosen, flight.room - steps)

    def _run(self, step: Step) -> dict[Sequence, list[Choice] | str]:
        self.cache.wipe(step.wiped)
        batch = make_batch(step, self.decoder.device)
        hidden = self._forward(batch)
        results = _broken(step, hidden)
        rows = hidden if len(batch.scored_rows) == len(hidden) else hidden[batch.scored_rows]
        results.update(choose(self.decoder.logits, rows, step.segments))
        return results

    def _forward(self, batch: Batch) -> torch.Tensor:
        if not isinstance(self.decoder, Decoder):
            return self.decoder.forward(batch, self.cache.keys, self.cache.values)
        with self.decoder.rows_of(batch.adapters):
            return self.decoder.forward(batch.ids, batch.positions, StepAttention(self.cache, batch))


def _broken(step: Step, hidden: torch.Tensor) -> dict[Sequence, list[Choice] | str]:
    """Return the sequences whose chunk of the prompt, which nothing is sampled from, ends in what is not finite."""
    rows, sequences, row = [], [], -1
    for segment in step.segments:
        row += segment.count
        if not segment.samples:
            rows.append(row)
            sequences.append(segment.sequence)
    if not rows:
        return {}
    finite = hidden[rows].isfinite().all(-1).tolist()
    return {sequence: NOT_FINITE for sequence, ok in zip(sequences, finite, strict=True) if not ok}
