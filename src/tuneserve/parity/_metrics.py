"""Distances between two sets of next-token distributions."""

import math
from dataclasses import dataclass

import torch

# A reference that prefers its first token by less than this (in nats) holds the two for tied.
TIE_MARGIN = 0.02
_POSITIONS_AT_ONCE = 16


@dataclass(frozen=True)
class Divergence:
    """KL(reference ‖ candidate) in nats over all positions, and what else their distributions say.

    ``agreement`` is the share of positions where both rank the same token first, or where the reference holds the two
    for tied (``ties`` counts those). The perplexities are those of the probe text under each. ``kl`` has the KL of each
    position.
    """

    mean_kl: float
    p99_kl: float
    max_kl: float
    agreement: float
    ties: int
    perplexity: float
    candidate_perplexity: float
    kl: tuple[float, ...]


def divergence(reference: torch.Tensor, candidate: torch.Tensor, targets: torch.Tensor) -> Divergence:
    """Compare logits of shape (positions, vocabulary); ``targets`` are the tokens that follow, -1 where none does.

    Computed in float64: the KL of a good merge is near 1e-6, where float32 sums over a vocabulary are noise.
    """
    rows = [
        _rows(theirs, ours, following)
        for theirs, ours, following in zip(
            torch.split(reference, _POSITIONS_AT_ONCE),
            torch.split(candidate, _POSITIONS_AT_ONCE),
            torch.split(targets, _POSITIONS_AT_ONCE),
            strict=True,
        )
    ]
    kl, agrees, tied, theirs, ours = (torch.cat(column) for column in zip(*rows, strict=True))
    followed = targets >= 0
    return Divergence(
        mean_kl=float(kl.mean()),
        p99_kl=float(kl.quantile(0.99)),
        max_kl=float(kl.max()),
        agreement=float((agrees | tied).double().mean()),
        ties=int(tied.sum()),
        perplexity=_perplexity(theirs[followed]),
        candidate_perplexity=_perplexity(ours[followed]),
        kl=tuple(kl.tolist()),
    )


def _rows(reference: torch.Tensor, candidate: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    ours, theirs = candidate.double().log_softmax(-1), reference.double().log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    first, chosen = theirs.argmax(-1, keepdim=True), ours.argmax(-1, keepdim=True)
    agrees = (first == chosen).squeeze(-1)
    gap = (theirs.gather(-1, first) - theirs.gather(-1, chosen)).squeeze(-1)
    following = targets.clamp(min=0).unsqueeze(-1)
    return (
        kl,
        agrees,
        ~agrees & (gap < TIE_MARGIN),
        theirs.gather(-1, following).squeeze(-1),
        ours.gather(-1, following).squeeze(-1),
    )


def _perplexity(logprobs: torch.Tensor) -> float:
    if not logprobs.numel():
        return math.nan
    mean = float(-logprobs.mean())
    # Over 700 the exponential leaves the range of a float.
    return math.exp(mean) if mean < 700 else math.inf
