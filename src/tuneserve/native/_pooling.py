"""The hidden states of a prompt as one vector."""

from typing import get_args

import torch

from tuneserve.engines import contract

Pool = contract.Pooling
POOLS: tuple[Pool, ...] = get_args(Pool)


class Pooling:
    """What has been pooled of a prompt that comes in chunks: ``count`` tokens so far."""

    def __init__(self, kind: Pool) -> None:
        self.count = 0
        self._kind = kind
        self._state: torch.Tensor | None = None

    def add(self, hidden: torch.Tensor) -> None:
        """Take the hidden states of the next tokens, (tokens, hidden)."""
        self.count += len(hidden)
        if self._kind == "last":
            self._state = hidden[-1].float()
        else:
            total = hidden.float().sum(0)
            self._state = total if self._state is None else self._state + total

    def state(self) -> list[float]:
        """Return the vector; something must have been taken."""
        assert self._state is not None
        numbers: list[float] = (self._state / self.count if self._kind == "mean" else self._state).tolist()
        return numbers
