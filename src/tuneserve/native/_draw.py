"""Drawing tokens from filtered distributions.

A row's numbers and its outcome do not depend on what other rows there are.
"""

import torch

from tuneserve.engines.contract import SamplingParams
from tuneserve.native._blocked import exponentials, find, leading
from tuneserve.native._filters import keep, keep_among

# So many of the likeliest tokens are looked at in one round after the other; few distributions need more.
_ROUNDS = (64, 512)
# A smaller one is zero in float32, and it divides by it.
_LEAST_TEMPERATURE = 1e-30
# 4 MB: memory for more is returned to the system each time, and slow to have again.
_NUMBERS_AT_ONCE = 1 << 20


def draw(logits: torch.Tensor, maxima: torch.Tensor, params: list[SamplingParams], uniforms: list[float]) -> list[int]:
    """Draw a token from each row.

    Args:
        logits: float32 (rows, vocabulary), changed in place.
        maxima: the largest of each row, finite (rows).
        params: of each row, with a temperature above 0.
        uniforms: a random number in [0, 1) for each row.
    """
    at_once = max(1, _NUMBERS_AT_ONCE // logits.shape[1])
    tokens: list[int] = []
    for first in range(0, len(params), at_once):
        some = slice(first, first + at_once)
        tokens += _draw_some(logits[some], maxima[some], params[some], uniforms[some])
    return tokens


def _draw_some(
    logits: torch.Tensor, maxima: torch.Tensor, params: list[SamplingParams], uniforms: list[float]
) -> list[int]:
    device = logits.device
    temperatures = torch.tensor([max(each.temperature, _LEAST_TEMPERATURE) for each in params], device=device)
    scores = logits.sub_(maxima[:, None]).div_(temperatures[:, None])
    points = torch.tensor(uniforms, dtype=torch.float64, device=device)
    filtered = [row for row, each in enumerate(params) if _is_filtered(each, logits.shape[1])]
    if len(filtered) == len(params):
        return _filtered(scores, params, points)
    if not filtered:
        return _list(find(exponentials(scores, out=scores), points))
    tokens = [0] * len(params)
    plain = sorted(set(range(len(params))).difference(filtered))
    _put(tokens, plain, _list(find(exponentials(scores[plain]), points[plain])))
    _put(tokens, filtered, _filtered(scores[filtered], [params[row] for row in filtered], points[filtered]))
    return tokens


def _is_filtered(params: SamplingParams, vocabulary: int) -> bool:
    return 0 < params.top_k < vocabulary or params.top_p < 1 or params.min_p > 0 or params.typical_p < 1


def _filtered(scores: torch.Tensor, params: list[SamplingParams], points: torch.Tensor) -> list[int]:
    """Draw from the few likeliest tokens where it is certain that the filters keep none beyond, else from all."""
    vocabulary = scores.shape[1]
    tokens, left = [0] * len(params), list(range(len(params)))
    for width in _ROUNDS:
        now = [row for row in left if params[row].top_k < width < vocabulary]
        if not now:
            continue
        mine = scores if len(now) == len(scores) else scores[now]
        values, ids = leading(mine, width)
        weights, certain = keep_among(values, mine, [params[row] for row in now])
        sure = torch.nonzero(certain).flatten()
        if not len(sure):
            continue
        rows = [now[index] for index in sure.tolist()]
        # In the order of the vocabulary, because how a sort breaks ties must not matter.
        order = ids[sure].argsort(-1)
        places = find(weights[sure].gather(1, order), points[rows])
        _put(tokens, rows, _list(ids[sure].gather(1, order.gather(1, places[:, None]))[:, 0]))
        left = sorted(set(left).difference(rows))
    if left:
        weights = keep(scores[left], [params[row] for row in left])
        _put(tokens, left, _list(find(weights, points[left])))
    return tokens


def _put(tokens: list[int], rows: list[int], drawn: list[int]) -> None:
    for row, token in zip(rows, drawn, strict=True):
        tokens[row] = token


def _list(tokens: torch.Tensor) -> list[int]:
    numbers: list[int] = tokens.tolist()
    return numbers
