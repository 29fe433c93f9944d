"""What passes between a host and a device that chooses tokens by itself."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SampledRows:
    """What the sequences of a batch ask for, and what is known of them; tensors on the CPU.

    Attributes:
        numbers: float64 (rows, 6): temperature (0 is greedy), top-p, min-p, and the penalties of repetition, presence
            and frequency.
        top_k: int32 (rows), 0 for all.
        asked: int32 (rows), of how many of the likeliest tokens to give log-probabilities, -1 for not even the chosen.
        penalised: int32 (rows), whether the tokens that it produces count.
        edits: int32 (rows + 1), where the room for a row's edits begins and ends.
        used: int32 (rows), how many there are.
        tokens, bias, until, counts: int32, float32, int32, int32 (room): a token, distinct within its row; what is
            added to its logit; how many tokens the row must have produced before it may come; for penalties, twice how
            often it was produced, plus one if it was seen at all.
        produced: int32 (rows), how many tokens were produced.
        uniforms: float64 (rows, steps), random numbers in [0, 1).
        filters: whether any row has top-k, top-p or min-p.
    """

    numbers: torch.Tensor
    top_k: torch.Tensor
    asked: torch.Tensor
    penalised: torch.Tensor
    edits: torch.Tensor
    used: torch.Tensor
    tokens: torch.Tensor
    bias: torch.Tensor
    until: torch.Tensor
    counts: torch.Tensor
    produced: torch.Tensor
    uniforms: torch.Tensor
    filters: bool


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
