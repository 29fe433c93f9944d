"""Which tokens may be drawn.

The filters follow Transformers in meaning and order: top-k, top-p (arXiv:1904.09751), min-p (arXiv:2407.01082),
typical-p (arXiv:2202.00666). What ties with the last token that a filter keeps is kept too, so that the outcome does
not depend on how a sort breaks ties.

Scores are logits over temperature from which the largest is taken away, float32; weights are their exponentials.
"""

import torch

from tuneserve.engines.contract import SamplingParams
from tuneserve.native._blocked import exponentials, highest_reaching, ordered, sums

_LARGEST = torch.iinfo(torch.int32).max


class _Columns:
    """The parameters of rows as columns, float64 (rows, 1)."""

    def __init__(self, params: list[SamplingParams], scores: torch.Tensor) -> None:
        def column(numbers: list[float]) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.float64, device=scores.device)[:, None]

        vocabulary = scores.shape[1]
        self.top_k = column([each.top_k if 0 < each.top_k < vocabulary else 0 for each in params])
        self.top_p = column([each.top_p for each in params])
        self.min_p = column([each.min_p for each in params])
        self.typical_p = column([each.typical_p for each in params])


def keep_among(
    values: torch.Tensor, scores: torch.Tensor, params: list[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of the likeliest tokens, 0 for what is not kept, and which rows keep nothing beyond them.

    Args:
        values: the largest scores of each row, in order, (rows, width).
        scores: all of them, (rows, vocabulary).
        params: of each row; ``top_k`` is less than the width.
    """
    limits = _Columns(params, scores)
    # What is above the floor is among the values with all that ties with it.
    floor = values[:, -1:]
    bounded = limits.top_k > 0
    kth = values.gather(1, limits.top_k.long().clamp(min=1) - 1)
    certain = ~bounded | (kth > floor)
    weights = torch.where(~bounded | (values >= kth), exponentials(values), 0.0)
    if any(each.top_p < 1 for each in params):
        cut = limits.top_p < 1
        totals = torch.where(bounded, weights.double().sum(-1, keepdim=True), sums(exponentials(scores)))
        before = weights.double().cumsum(-1) - weights
        last = values.gather(1, (before < limits.top_p * totals).sum(-1, keepdim=True).clamp(min=1) - 1)
        certain &= bounded | ~cut | (last > floor)
        weights = torch.where(~cut | (values >= last), weights, 0.0)
        bounded |= cut
    if any(each.min_p > 0 for each in params):
        least = limits.min_p.float()
        certain &= bounded | (least == 0) | (exponentials(floor) < least)
        weights = torch.where(weights >= least, weights, 0.0)
        bounded |= least > 0
    if any(each.typical_p < 1 for each in params):
        certain &= bounded | (limits.typical_p == 1)
        weights = _typical(weights, limits.typical_p)
    return weights, certain[:, 0]


def keep(scores: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Return the weights of all tokens, (rows, vocabulary), 0 for what is not kept."""
    limits = _Columns(params, scores)
    weights = exponentials(scores)
    if any(each.top_k for each in params):
        keys = _LARGEST - ordered(-scores)
        lowest = highest_reaching(keys, torch.ones_like(scores), limits.top_k)
        weights = torch.where((limits.top_k == 0) | (keys >= lowest), weights, 0.0)
    if any(each.top_p < 1 for each in params):
        keys = ordered(weights)
        lowest = highest_reaching(keys, weights, limits.top_p * sums(weights))
        weights = torch.where((limits.top_p == 1) | (keys >= lowest), weights, 0.0)
    if any(each.min_p > 0 for each in params):
        weights = torch.where(weights >= limits.min_p.float(), weights, 0.0)
    if any(each.typical_p < 1 for each in params):
        weights = _typical(weights, limits.typical_p)
    return weights


def _typical(weights: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Keep the tokens that are about as surprising as can be expected, up to a share of the probability."""
    probabilities = weights / sums(weights).float()
    logprobs = probabilities.log()
    entropy = sums(-torch.where(weights > 0, logprobs * probabilities, 0.0)).float()
    keys = _LARGEST - ordered((-logprobs - entropy).abs())
    lowest = highest_reaching(keys, probabilities, mass)
    return torch.where((mass == 1) | (keys >= lowest), weights, 0.0)
