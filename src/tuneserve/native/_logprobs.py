"""Log-probabilities of tokens, before any filter: natural logarithms, in float32."""

import torch

from tuneserve.engines.contract import TokenLogprob

# Logits of a vocabulary of 150,000 take 40 MB for so many rows.
ROWS_AT_ONCE = 64


def token_logprobs(logits: torch.Tensor, tokens: list[int], counts: list[int]) -> list[TokenLogprob]:
    """Return the log-probability of a token per row, and of the likeliest tokens, likeliest first.

    Args:
        logits: float32 (rows, vocabulary), as the model gave them.
        tokens: one per row.
        counts: how many of the likeliest each row wants, at most the vocabulary.
    """
    results: list[TokenLogprob] = []
    for first in range(0, len(tokens), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        results += _some(logits[part], tokens[part], counts[part])
    return results


def _some(logits: torch.Tensor, tokens: list[int], counts: list[int]) -> list[TokenLogprob]:
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(max(counts), logits.shape[-1]))
    tops = [
        list(zip(row_ids[:count], row_values[:count], strict=True))
        for row_ids, row_values, count in zip(ids.tolist(), values.tolist(), counts, strict=True)
    ]
    return [TokenLogprob(token, value, top) for token, value, top in zip(tokens, chosen, tops, strict=True)]
