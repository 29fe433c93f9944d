"""Drawing tokens from filtered distributions.

The filters follow Transformers in meaning and order: temperature, top-k, top-p (arXiv:1904.09751), min-p
(arXiv:2407.01082), typical-p (arXiv:2202.00666). What ties with the last token that a filter keeps is kept too, so that
the outcome does not depend on how a sort breaks ties.
"""

import torch

from tuneserve.engines.contract import SamplingParams
from tuneserve.native._blocked import blocks, find

# How many of the likeliest tokens are looked at, one round after the other, until the filters keep none beyond.
_ROUNDS = (64, 1024)
# A smaller one is zero in float32, and it divides by it.
_LEAST_TEMPERATURE = 1e-30


def draw(logits: torch.Tensor, maxima: torch.Tensor, params: list[SamplingParams], uniforms: list[float]) -> list[int]:
    """Draw a token from each row.

    Args:
        logits: float32 (rows, vocabulary), changed in place.
        maxima: the largest of each row, finite (rows).
        params: of each row, with a temperature above 0.
        uniforms: a random number in [0, 1) for each row.
    """
    device = logits.device
    temperatures = [max(each.temperature, _LEAST_TEMPERATURE) for each in params]
    scores = logits.sub_(maxima[:, None])
    if any(temperature != 1 for temperature in temperatures):
        scores.div_(torch.tensor(temperatures, device=device)[:, None])
    points = torch.tensor(uniforms, dtype=torch.float64, device=device)
    filtered = [row for row, each in enumerate(params) if _is_filtered(each, logits.shape[1])]
    if not filtered:
        return _list(find(scores.exp_(), points))
    tokens = [0] * len(params)
    plain = sorted(set(range(len(params))).difference(filtered))
    if plain:
        _put(tokens, plain, _list(find(scores[plain].exp_(), points[plain])))
    _put(tokens, filtered, _filtered(scores[filtered], [params[row] for row in filtered], points[filtered]))
    return tokens


def _is_filtered(params: SamplingParams, vocabulary: int) -> bool:
    return 0 < params.top_k < vocabulary or params.top_p < 1 or params.min_p > 0 or params.typical_p < 1


def _filtered(scores: torch.Tensor, params: list[SamplingParams], points: torch.Tensor) -> list[int]:
    vocabulary, device = scores.shape[1], scores.device
    tokens, left = [0] * len(params), list(range(len(params)))
    for width in (*_ROUNDS, vocabulary):
        width = min(width, vocabulary)
        now = [row for row in left if params[row].top_k < width or width == vocabulary]
        if not now:
            continue
        mine = scores[now]
        values, ids = mine.topk(width)
        weights, certain = _kept(mine, values, [params[row] for row in now])
        sure = torch.nonzero(certain).flatten()
        if not len(sure):
            continue
        rows = [now[index] for index in sure.tolist()]
        # In the order of the vocabulary, so that it does not matter in which round a row was done.
        order = ids[sure].argsort(-1)
        places = find(weights[sure].gather(1, order), points[torch.tensor(rows, dtype=torch.int64, device=device)])
        _put(tokens, rows, _list(ids[sure].gather(1, order.gather(1, places[:, None]))[:, 0]))
        left = [row for row in left if row not in set(rows)]
    assert not left
    return tokens


def _kept(
    scores: torch.Tensor, values: torch.Tensor, params: list[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of the likeliest tokens, 0 for what is not kept, and which rows keep nothing beyond them.

    Args:
        scores: all of the vocabulary, 0 at most.
        values: the largest of them, in order.
        params: of each row.
    """
    width, vocabulary = values.shape[1], scores.shape[1]

    def column(numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=values.device)[:, None]

    # What is above the floor is among the values with all that ties with it.
    floor = values[:, -1:] if width < vocabulary else torch.full_like(values[:, :1], -torch.inf)
    whole = torch.full_like(floor, width == vocabulary, dtype=torch.bool)
    top_k = column([float(each.top_k) if 0 < each.top_k < vocabulary else 0.0 for each in params])
    kth = values.gather(1, top_k.long().clamp(1, width) - 1)
    bounded = top_k > 0
    kept = ~bounded | (values >= kth)
    certain = whole | ~bounded | (kth > floor)
    weights = torch.where(kept, values.exp(), 0.0)

    if any(each.top_p < 1 for each in params):
        top_p = column([each.top_p for each in params])
        totals = torch.where(bounded, weights.double().sum(-1, keepdim=True), _total(scores))
        before = weights.double().cumsum(-1) - weights
        last = values.gather(1, ((before < top_p * totals) & kept).sum(-1, keepdim=True).clamp(min=1) - 1)
        cut = top_p < 1
        kept &= ~cut | (values >= last)
        certain &= whole | bounded | ~cut | (last > floor)
        bounded |= cut
    if any(each.min_p > 0 for each in params):
        min_p = column([each.min_p for each in params])
        kept &= values.exp() >= min_p.float()
        certain &= whole | bounded | (min_p == 0) | (floor.exp() < min_p.float())
        bounded |= min_p > 0
    if any(each.typical_p < 1 for each in params):
        typical_p = column([each.typical_p for each in params])
        certain &= whole | bounded | (typical_p == 1)
        kept &= (typical_p == 1) | _typical(torch.where(kept, values, -torch.inf), typical_p)
    return torch.where(kept, weights, 0.0), certain[:, 0]


def _typical(values: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Say which tokens are as surprising as can be expected, up to a mass of probability."""
    logprobs = values.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    shift = (-logprobs - entropy).abs()
    ordered, order = shift.sort(-1)
    reached = logprobs.exp().gather(1, order).double().cumsum(-1)
    last = (reached < mass).sum(-1, keepdim=True).clamp(max=values.shape[1] - 1)
    return shift <= ordered.gather(1, last)


def _total(scores: torch.Tensor) -> torch.Tensor:
    return blocks(scores.exp(), 0).sum(-1).double().cumsum(-1)[:, -1:]


def _put(tokens: list[int], rows: list[int], drawn: list[int]) -> None:
    for row, token in zip(rows, drawn, strict=True):
        tokens[row] = token


def _list(tokens: torch.Tensor) -> list[int]:
    numbers: list[int] = tokens.tolist()
    return numbers
