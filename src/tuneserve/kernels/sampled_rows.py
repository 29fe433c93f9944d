"""What the rows of a step ask of their next tokens, for a device that chooses them by itself; imports no Triton."""

from dataclasses import dataclass

import torch

# Of how many tokens a device gives log-probabilities by itself, beside the chosen.
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class SampledRows:
    """What rows ask for, and what is known of them.

    Attributes:
        numbers: float64 (rows, 6): temperature (0 is greedy), top-p, min-p, and the penalties of repetition, presence
            and frequency.
        top_k: int32 (rows), 0 for all.
        asked: int32 (rows), of how many of the likeliest tokens to give log-probabilities, -1 for not even the chosen.
        penalised: int32 (rows), whether the tokens that it produces are counted among its edits.
        edits: int32 (rows + 1), where the room for its edits begins and ends.
        used: int32 (rows), how many there are.
        tokens, bias, until, counts: int32, float32, int32, int32 (room): a token, distinct within its row; what is
            added to its logit; how many tokens the row must have produced before it may come; for penalties, twice how
            often it was produced, plus one if it was seen at all.
        produced: int32 (rows), how many tokens were produced.
        uniforms: float64 (rows, steps), random numbers in [0, 1).
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

    @property
    def filters(self) -> bool:
        """Whether any row that is drawn has top-k, top-p or min-p."""
        temperature, top_p, min_p = self.numbers[:, :3].unbind(1)
        return bool(((temperature > 0) & ((self.top_k > 0) | (top_p < 1) | (min_p > 0))).any())
