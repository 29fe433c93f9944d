"""Choosing the next token of each sequence.

The filters follow Transformers in meaning and order: repetition penalty, temperature, top-k, top-p, min-p. Each
sequence draws from a random stream of its own, so its tokens do not depend on what shares the batch.
"""

import torch

from tuneserve.engines.contract import SamplingParams
from tuneserve.native._sequence import Sequence

_CANDIDATES = 512


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int | None]:
    """Choose a token for each row of ``logits``, float32 (sequences, vocabulary); None where the row is not finite.

    The logits are changed in place.
    """
    for row, sequence in zip(logits, sequences, strict=True):
        _penalise(row, sequence)
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    chosen: list[int | None] = [token if ok else None for token, ok in zip(tokens.tolist(), finite, strict=True)]
    for index, sequence in enumerate(sequences):
        if finite[index] and sequence.request.params.temperature > 0:
            chosen[index] = _draw(logits[index], sequence.request.params, sequence.uniform())
    return chosen


def _penalise(row: torch.Tensor, sequence: Sequence) -> None:
    """Apply the repetition penalty of CTRL (arXiv:1909.05858) and hold back end tokens before ``min_tokens``."""
    params = sequence.request.params
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=row.device)
        scores = row[seen]
        row[seen] = torch.where(scores < 0, scores * params.repetition_penalty, scores / params.repetition_penalty)
    if sequence.generated < params.min_tokens and params.stop_token_ids:
        row[list(params.stop_token_ids)] = -torch.inf


def _draw(row: torch.Tensor, params: SamplingParams, uniform: float) -> int:
    scaled = (row - row.max()) / params.temperature
    weights, tokens = _filtered(scaled, params)
    cumulative = weights.double().cumsum(0)
    # Strictly below the total, so that a token of no weight is never the one found.
    point = min(uniform * cumulative[-1].item(), torch.nextafter(cumulative[-1], cumulative.new_zeros(())).item())
    index = int(torch.searchsorted(cumulative, point, right=True))
    return int(tokens[index]) if tokens is not None else index


def _filtered(scaled: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return unnormalised weights and the token of each; None stands for all tokens in order."""
    vocabulary = scaled.numel()
    tokens = None
    if 0 < params.top_k < vocabulary:
        scaled, tokens = scaled.topk(params.top_k)
    weights = scaled.exp()
    if params.top_p < 1:
        weights, tokens = _nucleus(weights, tokens, params.top_p)
    if params.min_p > 0:
        weights = torch.where(weights >= params.min_p * weights.max(), weights, 0.0)
    return weights, tokens


def _nucleus(
    weights: torch.Tensor, tokens: torch.Tensor | None, top_p: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keep the fewest most likely tokens whose share reaches ``top_p``, at least one (arXiv:1904.09751)."""
    limit = top_p * weights.double().sum()
    order = torch.arange(weights.numel(), device=weights.device)
    if tokens is None:
        # Sorting a whole vocabulary is slow, and the nucleus is nearly always among a few candidates.
        candidates, order = weights.topk(min(_CANDIDATES, weights.numel()))
        if candidates.double().sum() < limit:
            candidates, order = weights.sort(descending=True)
        weights, tokens = candidates, order
    before = weights.double().cumsum(0) - weights
    kept = max(1, int((before < limit).sum()))
    return weights[:kept], tokens[:kept]
