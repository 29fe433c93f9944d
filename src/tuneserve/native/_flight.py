"""Steps that a device runs while the host does something else."""

from dataclasses import dataclass

import torch

from tuneserve.native._sequence import Sequence


@dataclass(frozen=True)
class Flight:
    """``steps`` greedy steps of sequences that all decode, launched and perhaps still running.

    ``changes`` is what the scheduler had counted when it chose the sequences.
    """

    sequences: tuple[Sequence, ...]
    steps: int
    changes: int
    _tokens: torch.Tensor
    _landed: torch.cuda.Event | None

    @classmethod
    def of(cls, sequences: tuple[Sequence, ...], changes: int, tokens: torch.Tensor) -> "Flight":
        """Return the flight that will have chosen ``tokens``, int64 (steps, sequences) on the device."""
        if tokens.device.type != "cuda":
            return cls(sequences, len(tokens), changes, tokens, None)
        # Waiting for the tokens themselves would also wait for whatever is launched after them.
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record()
        return cls(sequences, len(tokens), changes, host, landed)

    def tokens(self) -> list[list[int]]:
        """Wait for the tokens of each sequence; -1 where numbers were not finite."""
        if self._landed is not None:
            self._landed.synchronize()
        return self._tokens.T.tolist()
