"""Choosing the next token of each sequence.

The logits are edited (``_edits``), then the likeliest token is taken or one is drawn (``_draw``). Each sequence draws
from a random stream of its own, and no operation mixes rows, so its tokens do not depend on what shares the batch.
"""

import torch

from tuneserve.native._blocked import best, row_maxima
from tuneserve.native._draw import draw
from tuneserve.native._edits import edit
from tuneserve.native._grammar import TOO_COMPLEX
from tuneserve.native._sequence import Row

NOT_FINITE = "the model gave no finite probabilities; check its weights, or run it in float32."
NONE_LEFT = "bad_words, min_tokens, logit_bias and the grammar together leave no token to choose; relax one of them."


def sample(logits: torch.Tensor, rows: list[Row]) -> list[int | str]:
    """Choose a token for each row of ``logits``, float32 (rows, vocabulary), or say why there is none.

    The logits are changed in place.
    """
    changed = any(row.sequence.edited for row in rows)
    finite = torch.isfinite(row_maxima(logits)).tolist() if changed else None
    edit(logits, rows)
    maxima, tokens = best(logits)
    usable = torch.isfinite(maxima).tolist()
    chosen: list[int | str] = list(tokens.tolist())
    drawn = []
    for index, row in enumerate(rows):
        grammar = row.sequence.grammar
        if grammar is not None and grammar.failed:
            chosen[index] = TOO_COMPLEX
        elif not usable[index]:
            chosen[index] = NONE_LEFT if finite and finite[index] else NOT_FINITE
        elif row.sequence.request.params.temperature > 0:
            drawn.append(index)
    if drawn:
        params = [rows[index].sequence.request.params for index in drawn]
        uniforms = [rows[index].sequence.uniform(rows[index].ahead) for index in drawn]
        if len(drawn) < len(rows):
            logits, maxima = logits[drawn], maxima[drawn]
        for index, token in zip(drawn, draw(logits, maxima, params, uniforms), strict=True):
            chosen[index] = token
    return chosen
