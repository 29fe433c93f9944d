"""What the rows of decode steps ask of their next tokens, in buffers that CUDA graphs are over."""

from dataclasses import fields

import torch

from tuneserve.kernels.gpu.sample import Asks, SamplingResults, SamplingRows, sample
from tuneserve.kernels.sampled_rows import SampledRows
from tuneserve.model._sampled import Chosen

MOST_STEPS = 8
_LEAST_ROOM = 4096


class GpuSampler:
    """Chooses tokens of up to ``sequences`` rows; takes memory at the first use.

    Args:
        sequences: rows at most.
        vocabulary: logits of each.
        device: where they are.
    """

    def __init__(self, sequences: int, vocabulary: int, device: torch.device) -> None:
        self._sequences, self._vocabulary, self._device = sequences, vocabulary, device
        self._rows: SamplingRows | None = None
        self._results: SamplingResults | None = None
        self.asks = Asks(False, False, False)

    def enter(self, rows: SampledRows) -> bool:
        """Take rows on the CPU, with random numbers for some steps; return whether the buffers have moved."""
        room = len(rows.tokens)
        moved = self._rows is not None and len(self._rows.tokens) < room
        if self._rows is None or moved:
            self._rows = self._of(max(_LEAST_ROOM, 1 << room.bit_length()))
            self._results = self._results or SamplingResults.of(self._sequences, self._vocabulary, self._device)
        self.asks = Asks(rows.filters, room > 0, bool((rows.asked >= 0).any()))
        for field in fields(SampledRows):
            if field.name != "uniforms":
                self._put(getattr(self._rows, field.name), getattr(rows, field.name))
        self.feed(rows.uniforms)
        return moved

    def feed(self, uniforms: torch.Tensor) -> None:
        """Take the random numbers of the next steps, float64 (rows, steps) on the CPU."""
        assert self._rows is not None
        self._put(self._rows.uniforms[:, : uniforms.shape[1]], uniforms)
        self._rows.step.zero_()

    def choose(self, logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor) -> None:
        """Choose a token per row into ``ids`` and count it; see :func:`~tuneserve.kernels.gpu.sample.sample`."""
        assert self._rows is not None
        assert self._results is not None
        sample(logits, ids, lengths, self._rows, self._results, self.asks)

    def once(self, logits: torch.Tensor) -> Chosen:
        """Choose a token for each row of ``logits`` (rows, vocabulary), outside of any graph."""
        count = len(logits)
        ids, lengths = (torch.ones(count, dtype=kind, device=self._device) for kind in (torch.int64, torch.int32))
        self.choose(logits, ids, lengths)
        chosen = self.room(1, count)
        chosen.tokens[0] = ids
        self.keep(chosen, 0)
        return chosen

    def room(self, steps: int, count: int) -> Chosen:
        """Return room for the tokens of some steps."""
        tokens = torch.empty(steps, count, dtype=torch.int64, device=self._device)
        if not self.asks.logprobs or self._results is None:
            return Chosen(tokens)
        logprobs, likeliest = self._results.logprobs, self._results.likeliest
        return Chosen(
            tokens,
            logprobs.new_empty(steps, count, logprobs.shape[1]),
            likeliest.new_empty(steps, count, likeliest.shape[1]),
        )

    def keep(self, chosen: Chosen, step: int) -> None:
        """Keep the log-probabilities of a step, where there are any."""
        if chosen.logprobs is not None and chosen.likeliest is not None and self._results is not None:
            count = chosen.tokens.shape[1]
            chosen.logprobs[step] = self._results.logprobs[:count]
            chosen.likeliest[step] = self._results.likeliest[:count]

    def _of(self, room: int) -> SamplingRows:
        def integers(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32, device=self._device)

        def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=self._device)

        count = self._sequences
        return SamplingRows(
            numbers=numbers(count, 6, dtype=torch.float64),
            top_k=integers(count),
            asked=integers(count),
            penalised=integers(count),
            edits=integers(count + 1),
            used=integers(count),
            tokens=integers(room),
            bias=numbers(room),
            until=integers(room),
            counts=integers(room),
            raw=numbers(room),
            uniforms=numbers(count, MOST_STEPS, dtype=torch.float64),
            step=integers(count),
            produced=integers(count),
        )

    def _put(self, target: torch.Tensor, source: torch.Tensor) -> None:
        # From pageable memory the host would wait until the device comes to the copy.
        source = source.pin_memory() if self._device.type == "cuda" and source.numel() else source
        target[: len(source)].copy_(source, non_blocking=True)
