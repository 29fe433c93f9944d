"""Steps that a device runs while the host does something else."""

from dataclasses import dataclass

import torch

from tuneserve.engines.contract import TokenLogprob
from tuneserve.model import Chosen
from tuneserve.native._choose import Choice
from tuneserve.native._sampler import NONE_LEFT, NOT_FINITE
from tuneserve.native._sequence import Sequence

_FAILED = {-1: NOT_FINITE, -2: NONE_LEFT}


@dataclass(frozen=True)
class Flight:
    """``steps`` steps of sequences that all decode, launched and perhaps still running.

    ``changes`` is what the scheduler had counted when it chose the sequences; ``room`` is how many steps the device can
    take by itself after these, without limit where it only looks for the likeliest token.
    """

    sequences: tuple[Sequence, ...]
    steps: int
    changes: int
    room: float
    _chosen: Chosen
    _landed: torch.cuda.Event | None

    @classmethod
    def of(cls, sequences: tuple[Sequence, ...], changes: int, chosen: Chosen, room: float) -> "Flight":
        """Return the flight that will have chosen so."""
        steps = len(chosen.tokens)
        if chosen.tokens.device.type != "cuda":
            return cls(sequences, steps, changes, room, chosen, None)
        # Waiting for the tokens themselves would also wait for whatever is launched after them.
        host = Chosen(_fetched(chosen.tokens))
        if chosen.logprobs is not None and chosen.likeliest is not None:
            host = Chosen(host.tokens, _fetched(chosen.logprobs), _fetched(chosen.likeliest))
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record()
        return cls(sequences, steps, changes, room, host, landed)

    def choices(self) -> list[list[Choice] | str]:
        """Wait for the tokens of each sequence; a text says why there are none."""
        if self._landed is not None:
            self._landed.synchronize()
        found: list[list[Choice] | str] = []
        for row, (sequence, tokens) in enumerate(zip(self.sequences, self._chosen.tokens.T.tolist(), strict=True)):
            if min(tokens) < 0:
                found.append(_FAILED[next(token for token in tokens if token < 0)])
            elif sequence.request.params.logprobs is None:
                found.append([Choice(token) for token in tokens])
            else:
                found.append(self._with_logprobs(row, tokens, sequence.request.params.logprobs))
        return found

    def _with_logprobs(self, row: int, tokens: list[int], count: int) -> list[Choice] | str:
        assert self._chosen.logprobs is not None
        assert self._chosen.likeliest is not None
        logprobs = self._chosen.logprobs[:, row, : count + 1].tolist()
        likeliest = self._chosen.likeliest[:, row, :count].tolist()
        return [
            Choice(token, TokenLogprob(token, own, list(zip(ids, others, strict=True))))
            for token, (own, *others), ids in zip(tokens, logprobs, likeliest, strict=True)
        ]


def _fetched(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
