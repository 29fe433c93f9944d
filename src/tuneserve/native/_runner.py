"""Runs a step: tokens to the device, through the decoder, to chosen tokens."""

import math
from collections.abc import Collection

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
from tuneserve.native._states import StateCache, StepRecurrence


class Runner:
    """A decoder with its cache of so many blocks, and ``slots`` for the states of sequences."""

    def __init__(self, decoder: AnyDecoder, blocks: int, slots: int) -> None:
        self.decoder = decoder
        self.cache = PagedCache(decoder.spec, blocks, decoder.dtype, decoder.device)
        self.states = StateCache(decoder.spec, slots, decoder.dtype, decoder.device)

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
        return step.decodes == len(step.segments) and self.chooses_for([segment.sequence for segment in step.segments])

    def chooses_for(self, sequences: Collection[Sequence]) -> bool:
        """Whether the device can choose the next token of each of these by itself."""
        return isinstance(self.decoder, AheadDecoder) and all(sequence.steps_alone for sequence in sequences)

    @torch.inference_mode()
    def launch(self, step: Step, steps: int, changes: int) -> Flight:
        """Launch steps of sequences that :meth:`runs_ahead`; each must have blocks for so many tokens."""
        self.wipe(step.wiped)
        batch = make_batch(step, self.host, ahead=steps - 1)
        sequences = tuple(segment.sequence for segment in step.segments)
        if all(sequence.simply_greedy for sequence in sequences):
            chosen, room = Chosen(self.decode_greedily(batch, steps)), math.inf
        else:
            assert isinstance(self.decoder, AheadDecoder)
            rows = sampled_rows(sequences, steps)
            chosen = self.decoder.decode_sampled(batch, self.cache.keys, self.cache.values, rows)
            room = ROOM - steps
        return Flight.of(sequences, changes, chosen, room)

    @torch.inference_mode()
    def follow(self, flight: Flight, steps: int) -> Flight:
        """Launch steps after those of the last flight, which need not have landed, for all of its sequences."""
        tables = block_tables(flight.sequences, flight.steps + steps, self.host)
        if math.isinf(flight.room):
            chosen = Chosen(self.go_on_greedily(tables, steps))
        else:
            assert isinstance(self.decoder, AheadDecoder)
            numbers = uniforms(flight.sequences, flight.steps, steps)
            chosen = self.decoder.go_on_sampling(tables, self.cache.keys, self.cache.values, numbers)
        return Flight.of(flight.sequences, flight.changes, chosen, flight.room - steps)

    def _run(self, step: Step) -> dict[Sequence, list[Choice] | str]:
        self.wipe(step.wiped)
        batch = make_batch(step, self.host)
        hidden = self.forward(batch)
        results = _broken(step, hidden)
        rows = hidden if len(batch.scored_rows) == len(hidden) else hidden[batch.scored_rows]
        sequences = [segment.sequence for segment in step.segments]
        if self.chooses_for(sequences) and not all(sequence.simply_greedy for sequence in sequences):
            results.update(self._sampled(rows, [segment.sequence for segment in step.segments if segment.samples]))
        else:
            results.update(choose(self.logits, rows, step.segments))
        return results

    def _sampled(self, hidden: torch.Tensor, sequences: list[Sequence]) -> dict[Sequence, list[Choice] | str]:
        """Return what the device chooses for sequences that end in these hidden states."""
        if not sequences:
            return {}
        assert isinstance(self.decoder, AheadDecoder)
        chosen = self.decoder.sample(hidden, sampled_rows(sequences, 1))
        return dict(zip(sequences, Flight.of(tuple(sequences), 0, chosen, 0).choices(), strict=True))

    @property
    def host(self) -> torch.device:
        """Where batches are made."""
        return self.decoder.device

    def wipe(self, blocks: tuple[int, ...]) -> None:
        """Overwrite blocks of the cache with zeros."""
        self.cache.wipe(blocks)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (rows, vocabulary) of hidden states (rows, hidden)."""
        return self.decoder.logits(hidden)

    def decode_greedily(self, batch: Batch, steps: int) -> torch.Tensor:
        """Run greedy steps over the cache; see :class:`~tuneserve.native._decoders.AheadDecoder`."""
        assert isinstance(self.decoder, AheadDecoder)
        return self.decoder.decode_greedily(batch, self.cache.keys, self.cache.values, steps)

    def go_on_greedily(self, tables: torch.Tensor, steps: int) -> torch.Tensor:
        """Run greedy steps after those of the call before."""
        assert isinstance(self.decoder, AheadDecoder)
        return self.decoder.go_on_greedily(tables, self.cache.keys, self.cache.values, steps)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run a batch over the cache and return its hidden states after the last norm, (tokens, hidden)."""
        if not isinstance(self.decoder, Decoder):
            return self.decoder.forward(batch, self.cache.keys, self.cache.values)
        attention, recurrence = StepAttention(self.cache, batch), StepRecurrence(self.states, batch)
        with self.decoder.rows_of(batch.adapters):
            return self.decoder.forward(batch.ids, batch.positions, attention, recurrence)


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
