"""What changes the logits before a token is chosen.

In this order: ``logit_bias``; the repetition penalty of CTRL (arXiv:1909.05858), over prompt and output as in
Transformers; OpenAI's presence and frequency penalties, over the output; then what must not come: bad words, end tokens
before ``min_tokens``, and what the grammar does not allow. One operation does each for all rows that have it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tuneserve.native._grammar import forbidden
from tuneserve.native._sequence import Row

_Numbers = NDArray[np.int64] | NDArray[np.float32]


def edit(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Change each row of ``logits``, float32 (rows, vocabulary), in place, as its sequence's parameters say."""
    edited = [(index, row) for index, row in enumerate(rows) if row.sequence.edited]
    if edited:
        _add_bias(logits, edited)
        _penalise_repetition(logits, edited)
        _penalise_output(logits, edited)
        _ban(logits, edited)
        _keep_to_grammars(logits, edited)


_Edited = list[tuple[int, Row]]


def _add_bias(logits: torch.Tensor, edited: _Edited) -> None:
    places, amounts = [], []
    for index, row in edited:
        if bias := row.sequence.request.params.logit_bias:
            places.append(np.fromiter(bias.keys(), np.int64) + index * logits.shape[1])
            amounts.append(np.fromiter(bias.values(), np.float32))
    if places:
        _flat(logits)[_joined(places, logits)] += _joined(amounts, logits)


def _penalise_repetition(logits: torch.Tensor, edited: _Edited) -> None:
    places, penalties = [], []
    for index, row in edited:
        if row.sequence.seen is not None:
            ids, _ = row.sequence.seen.with_more(row.sequence.draft[: row.ahead])
            places.append(ids + index * logits.shape[1])
            penalties.append(np.full(len(ids), row.sequence.request.params.repetition_penalty, np.float32))
    if places:
        place, penalty = _joined(places, logits), _joined(penalties, logits)
        scores = _flat(logits)[place]
        _flat(logits)[place] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _penalise_output(logits: torch.Tensor, edited: _Edited) -> None:
    places, amounts = [], []
    for index, row in edited:
        if row.sequence.new is not None:
            params = row.sequence.request.params
            ids, counts = row.sequence.new.with_more(row.sequence.draft[: row.ahead])
            places.append(ids + index * logits.shape[1])
            amounts.append((params.presence_penalty + params.frequency_penalty * counts).astype(np.float32))
    if places:
        _flat(logits)[_joined(places, logits)] -= _joined(amounts, logits)


def _ban(logits: torch.Tensor, edited: _Edited) -> None:
    places = []
    for index, row in edited:
        sequence, params = row.sequence, row.sequence.request.params
        banned = list(params.stop_token_ids) if sequence.generated + row.ahead < params.min_tokens else []
        if sequence.bad_words is not None:
            banned += sequence.bad_words.banned(sequence.past(row.ahead))
        if banned:
            places.append(np.array(banned, np.int64) + index * logits.shape[1])
    if places:
        _flat(logits)[_joined(places, logits)] = -torch.inf


def _keep_to_grammars(logits: torch.Tensor, edited: _Edited) -> None:
    # The rows of a sequence follow one another: after its last token, then after each of its draft.
    indices = [index for index, row in edited if row.sequence.grammar is not None]
    states = [
        (row.sequence.grammar, row.sequence.draft)
        for _, row in edited
        if row.ahead == 0 and row.sequence.grammar is not None
    ]
    if states:
        masks = torch.from_numpy(forbidden(states, logits.shape[1])).to(logits.device)
        for index, mask in zip(indices, masks, strict=True):
            logits[index].masked_fill_(mask, -torch.inf)


def _flat(logits: torch.Tensor) -> torch.Tensor:
    return logits.view(-1)


def _joined(parts: Sequence[_Numbers], logits: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(logits.device)
