"""From a step's hidden states to what it says of each sequence."""

import math
from collections.abc import Callable, Iterable

import msgspec
import torch

from tuneserve.engines.contract import TokenLogprob
from tuneserve.native._logprobs import ROWS_AT_ONCE, token_logprobs
from tuneserve.native._sampler import NOT_FINITE, sample
from tuneserve.native._scheduler import Segment
from tuneserve.native._sequence import Row, Sequence

Logits = Callable[[torch.Tensor], torch.Tensor]


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A new token of a sequence."""

    token: int
    logprob: TokenLogprob | None = None


@torch.inference_mode()
def choose(logits: Logits, hidden: torch.Tensor, segments: Iterable[Segment]) -> dict[Sequence, list[Choice] | str]:
    """Choose the next tokens of each segment that samples, or say why there are none.

    They are one more than what came true of the sequence's draft, to which it is cut: at each place a token is chosen
    as it would be without a draft, and where it is the one in the draft, the choice at the next place holds as well.
    Log-probabilities of prompts are kept in their sequences.

    Args:
        logits: gives float32 (rows, vocabulary) for hidden states (rows, hidden).
        hidden: the rows that the segments' sequences asked to be scored, in order.
        segments: those of the step.
    """
    places: list[Row] = []
    indices: list[int] = []
    first = 0
    for segment in segments:
        sequence = segment.sequence
        count = sequence.scored_rows(segment.start, segment.count)
        if sequence.pooling is not None and sequence.reusable < len(sequence.tokens):
            sequence.pooling.add(hidden[first : first + count])
        else:
            _score_prompt(logits, hidden[first : first + count], segment, count)
        first += count
        if segment.samples:
            rows = 1 + len(sequence.draft)
            places += [Row(sequence, ahead) for ahead in range(rows)]
            indices += range(first - rows, first)
    if not places:
        return {}
    scores = logits(hidden if len(places) == len(hidden) else hidden[torch.tensor(indices, device=hidden.device)])
    chosen: dict[Sequence, list[Choice] | str] = {}
    for place, choice in zip(places, _sampled(scores, places), strict=True):
        _take(chosen, place, choice)
    for sequence, choices in chosen.items():
        sequence.settle(len(choices) - 1 if isinstance(choices, list) else 0)
    return chosen


def _take(chosen: dict[Sequence, list[Choice] | str], place: Row, choice: Choice | str) -> None:
    """Note a choice if all of the draft before it came true."""
    sequence, ahead = place.sequence, place.ahead
    if ahead == 0:
        chosen[sequence] = choice if isinstance(choice, str) else [choice]
        return
    before = chosen[sequence]
    true = isinstance(before, list) and len(before) == ahead and before[-1].token == sequence.draft[ahead - 1]
    # What fails after a token that came true will do so again in the next step.
    if true and isinstance(before, list) and isinstance(choice, Choice):
        before.append(choice)


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


def _sampled(scores: torch.Tensor, places: list[Row]) -> list[Choice | str]:
    wanted = [row for row, place in enumerate(places) if place.sequence.request.params.logprobs is not None]
    # Sampling changes the scores in place.
    before = scores[torch.tensor(wanted, device=scores.device)] if wanted else scores[:0]
    choices = [token if isinstance(token, str) else Choice(token) for token in sample(scores, places)]
    if wanted:
        tokens = [choice.token if isinstance(choice := choices[row], Choice) else 0 for row in wanted]
        counts = [places[row].sequence.request.params.logprobs or 0 for row in wanted]
        for row, logprob in zip(wanted, token_logprobs(before, tokens, counts), strict=True):
            if isinstance(choices[row], Choice):
                choices[row] = Choice(logprob.token_id, logprob)
    return [choice if _finite(place.sequence) else NOT_FINITE for choice, place in zip(choices, places, strict=True)]


def _finite(sequence: Sequence) -> bool:
    return sequence.generated > 0 or all(math.isfinite(entry.logprob) for entry in sequence.prompt_logprobs)
