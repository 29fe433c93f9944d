"""From a step's hidden states to what it says of each sequence."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from tuneserve.engines.contract import TokenLogprob
from tuneserve.native._logprobs import ROWS_AT_ONCE, token_logprobs
from tuneserve.native._sampler import NOT_FINITE, sample
from tuneserve.native._scheduler import Segment
from tuneserve.native._sequence import Row, Sequence

Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Choice:
    """The next token of a sequence."""

    token: int
    logprob: TokenLogprob | None = None


@torch.inference_mode()
def choose(logits: Logits, hidden: torch.Tensor, segments: Iterable[Segment]) -> dict[Sequence, Choice | str]:
    """Choose the next token of each segment that samples, or say why there is none.

    Log-probabilities of prompts are kept in their sequences.

    Args:
        logits: gives float32 (rows, vocabulary) for hidden states (rows, hidden).
        hidden: the rows that the segments' sequences asked to be scored, in order.
        segments: those of the step.
    """
    sampled: list[Sequence] = []
    rows: list[int] = []
    first = 0
    for segment in segments:
        count = segment.sequence.scored_rows(segment.start, segment.count)
        _score_prompt(logits, hidden[first : first + count], segment, count)
        first += count
        if segment.samples:
            sampled.append(segment.sequence)
            rows.append(first - 1)
    if not sampled:
        return {}
    scored = logits(hidden if len(rows) == len(hidden) else hidden[torch.tensor(rows, device=hidden.device)])
    return dict(zip(sampled, _sampled(scored, sampled), strict=True))


def _score_prompt(logits: Logits, hidden: torch.Tensor, segment: Segment, count: int) -> None:
    sequence = segment.sequence
    wanted = sequence.request.params.prompt_logprobs
    # The row of a token says what follows it; what follows the prompt's last is not part of the prompt.
    followers = sequence.request.prompt_ids[segment.start + segment.count - count + 1 :][:count]
    if wanted is None or not followers or len(sequence.prompt_logprobs) == len(sequence.request.prompt_ids) - 1:
        return
    for first in range(0, len(followers), ROWS_AT_ONCE):
        tokens = followers[first : first + ROWS_AT_ONCE]
        scores = logits(hidden[first : first + len(tokens)])
        sequence.prompt_logprobs += token_logprobs(scores, tokens, [wanted] * len(tokens))


def _sampled(scores: torch.Tensor, sequences: list[Sequence]) -> list[Choice | str]:
    wanted = [row for row, sequence in enumerate(sequences) if sequence.request.params.logprobs is not None]
    # Sampling changes the scores in place.
    before = scores[torch.tensor(wanted, device=scores.device)] if wanted else scores[:0]
    chosen = sample(scores, [Row(sequence) for sequence in sequences])
    choices = [token if isinstance(token, str) else Choice(token) for token in chosen]
    if wanted:
        tokens = [choice.token if isinstance(choice := choices[row], Choice) else 0 for row in wanted]
        counts = [sequences[row].request.params.logprobs or 0 for row in wanted]
        for row, logprob in zip(wanted, token_logprobs(before, tokens, counts), strict=True):
            if isinstance(choices[row], Choice):
                choices[row] = Choice(logprob.token_id, logprob)
    return [choice if _finite(sequence) else NOT_FINITE for choice, sequence in zip(choices, sequences, strict=True)]


def _finite(sequence: Sequence) -> bool:
    return sequence.generated > 0 or all(math.isfinite(entry.logprob) for entry in sequence.prompt_logprobs)
