"""Distances between two sets of next-token distributions."""

from dataclasses import dataclass

import torch

# A reference that prefers its first token by less than this (in nats) holds the two for tied.
TIE_MARGIN = 0.02


@dataclass(frozen=True)
class Divergence:
    """Per position, each of shape (positions,): KL(reference ‖ candidate) in nats (float64), agreement, tie (bool)."""

    kl: torch.Tensor
    agrees: torch.Tensor
    tied: torch.Tensor


def divergence(reference: torch.Tensor, candidate: torch.Tensor) -> Divergence:
    """Compare logits of shape (positions, vocabulary).

    Computed in float64: the KL of a good merge is near 1e-6, where float32 sums over a vocabulary are noise.
    """
    ours, theirs = candidate.double().log_softmax(-1), reference.double().log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    first, chosen = theirs.argmax(-1, keepdim=True), ours.argmax(-1, keepdim=True)
    agrees = (first == chosen).squeeze(-1)
    gap = (theirs.gather(-1, first) - theirs.gather(-1, chosen)).squeeze(-1)
    return Divergence(kl, agrees, ~agrees & (gap < TIE_MARGIN))
