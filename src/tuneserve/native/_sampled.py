"""What sequences ask for, as tensors for a device that chooses their tokens by itself."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tuneserve.model import SampledRows
from tuneserve.native._sequence import Sequence

# After so many steps what a device has counted is taken from the host again.
ROOM = 256
_ALWAYS = np.iinfo(np.int32).max
# To find out that a sequence has none takes as long as to find some.
_NO_EDITS: tuple[NDArray[Any], ...] = (np.empty(0),) * 4


def uniforms(sequences: Collection[Sequence], after: int, steps: int) -> torch.Tensor:
    """Return the random numbers of some tokens after the next ``after``, float64 (sequences, steps)."""
    numbers = [
        [sequence.uniform(ahead) for ahead in range(after, after + steps)]
        if sequence.request.params.temperature > 0
        else [0.0] * steps
        for sequence in sequences
    ]
    return torch.tensor(numbers, dtype=torch.float64)


def sampled_rows(sequences: Collection[Sequence], steps: int) -> SampledRows:
    """Return what sequences that :attr:`~tuneserve.native._sequence.Sequence.steps_alone` ask for, on the CPU."""
    params = [sequence.request.params for sequence in sequences]
    edits = [_edits(sequence) if sequence.edited else _NO_EDITS for sequence in sequences]
    penalised = [sequence.seen is not None or sequence.new is not None for sequence in sequences]
    rooms = [len(each[0]) + (ROOM if counts else 0) for each, counts in zip(edits, penalised, strict=True)]
    ends = np.cumsum([0, *rooms])
    kinds = (np.int32, np.float32, np.int32, np.int32)
    flat: list[NDArray[Any]] = [np.zeros(ends[-1], kind) for kind in kinds]
    for each, start in zip(edits, ends.tolist(), strict=False):
        for target, part in zip(flat, each, strict=True):
            target[start : start + len(part)] = part
    tokens, bias, until, counts = (torch.from_numpy(each) for each in flat)
    numbers = [
        (
            each.temperature,
            each.top_p,
            each.min_p,
            each.repetition_penalty,
            each.presence_penalty,
            each.frequency_penalty,
        )
        for each in params
    ]
    return SampledRows(
        numbers=torch.tensor(numbers, dtype=torch.float64),
        top_k=_integers([each.top_k for each in params]),
        asked=_integers([-1 if each.logprobs is None else each.logprobs for each in params]),
        penalised=_integers([int(counts) for counts in penalised]),
        edits=_integers(ends.tolist()),
        used=_integers([len(each[0]) for each in edits]),
        tokens=tokens,
        bias=bias,
        until=until,
        counts=counts,
        produced=_integers([sequence.generated for sequence in sequences]),
        uniforms=uniforms(sequences, 0, steps),
    )


def _edits(sequence: Sequence) -> tuple[NDArray[Any], ...]:
    """Return tokens, what is added to the logit of each, how many must come before it, and its counts."""
    params = sequence.request.params
    banned = list(params.stop_token_ids) if sequence.generated < params.min_tokens else []
    never = (sequence.bad_words.always() if sequence.bad_words is not None else None) or []
    nothing = np.empty(0, np.int64)
    seen, _ = (nothing, nothing) if sequence.seen is None else sequence.seen.with_more(())
    new, produced = (nothing, nothing) if sequence.new is None else sequence.new.with_more(())
    own = np.array([*params.logit_bias, *banned, *never], np.int64)
    tokens = np.unique(np.concatenate((own, seen, new)))
    bias, until, counts = np.zeros(len(tokens)), np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.int64)
    bias[np.searchsorted(tokens, list(params.logit_bias))] = list(params.logit_bias.values())
    until[np.searchsorted(tokens, banned)] = params.min_tokens
    until[np.searchsorted(tokens, never)] = _ALWAYS
    counts[np.searchsorted(tokens, seen)] = 1
    counts[np.searchsorted(tokens, new)] += 2 * produced
    return tokens, bias, until, counts


def _integers(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)
