"""Drawing tokens from filtered distributions.

A row's numbers and its outcome do not depend on what other rows there are.
"""

import torch

from tuneserve.engines.contract import SamplingParams
from tuneserve.native._blocked import find, leading
from tuneserve.native._filters import keep, keep_among

# So many of the likeliest tokens are looked at in one round after the other; few distributions need more.
_ROUNDS = (64, 512)
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
    """Draw from the few likeliest tokens where it is certain that the filters keep none beyond, else from all."""
    vocabulary = scores.shape[1]
    tokens, left = [0] * len(params), list(range(len(params)))
    for width in _ROUNDS:
        now = [row for row in left if params[row].top_k < width < vocabulary]
        if not now:
            continue
        values, ids = leading(scores[now], width)
        weights, certain = keep_among(values, scores[now], [params[row] for row in now])
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
