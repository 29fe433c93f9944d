"""What a device that chooses tokens by itself has chosen."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Chosen:
    """The tokens of some steps, on the device.

    Attributes:
        tokens: int64 (steps, sequences); -1 where numbers were not finite, -2 where edits left no token to choose.
        logprobs: float32 (steps, sequences, 1 + most), of the token and of the likeliest; None if none were asked for.
        likeliest: int32 (steps, sequences, most), the latter's tokens; None likewise.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor | None = None
    likeliest: torch.Tensor | None = None
