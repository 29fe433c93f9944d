"""Rows of token ids in and out, as Transformers' ``generate`` has them."""

from typing import Protocol

import torch

from tuneserve.engines.contract import GenerationRequest
from tuneserve.errors import InputError
from tuneserve.native._engine import NativeCore
from tuneserve.native._offline import outputs
from tuneserve.text import Detokenizer, StopStrings, Tokenizer


class Streamer(Protocol):
    """What Transformers' streamers have."""

    def put(self, value: torch.Tensor) -> None:
        """Take token ids: the prompt's first, then each new one."""

    def end(self) -> None:
        """Learn that there are no more."""


class StoppingCriterion(Protocol):
    """What Transformers' stopping criteria have."""

    def __call__(self, input_ids: torch.Tensor, scores: None) -> torch.Tensor | bool:
        """Say whether a row ends; ``input_ids`` is int64 (1, length)."""


def rows_of(ids: torch.Tensor | None, mask: torch.Tensor | None) -> list[list[int]]:
    """Return the tokens of each row that are not padding.

    Raises:
        InputError: the ids are not integers (rows, length), or the mask is of another shape.
    """
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.is_floating_point() or not len(ids):
        raise InputError("generate needs input_ids, integers (rows, length) of a row or more; tokenize a prompt.")
    if mask is None:
        return [row.tolist() for row in ids]
    if mask.shape != ids.shape:
        raise InputError(
            f"attention_mask is {list(mask.shape)} and input_ids {list(ids.shape)}; pass both from one tokenizer call."
        )
    return [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]


def padded(ids: torch.Tensor, produced: list[list[int]], pad: int) -> torch.Tensor:
    """Return the rows of ``ids`` with what followed each, padded at the end."""
    longest = max(map(len, produced))
    rows = [tokens + [pad] * (longest - len(tokens)) for tokens in produced]
    return torch.cat((ids, torch.tensor(rows, dtype=ids.dtype, device=ids.device)), dim=1)


def continue_rows(
    core: NativeCore,
    tokenizer: Tokenizer,
    requests: list[GenerationRequest],
    stops: list[str],
    streamer: Streamer | None,
    criteria: list[StoppingCriterion],
) -> list[list[int]]:
    """Return what follows each request's prompt, up to and with the token that completes a stop string.

    Args:
        streamer: takes the prompt and the tokens of the only request.
        criteria: end a row beside ``stops``.

    Raises:
        RequestError: a request cannot be served.
        EngineError: the engine could not continue one.
    """
    rows = {request.id: _Row(tokenizer, request.prompt_ids, stops, criteria) for request in requests}
    if streamer is not None:
        streamer.put(torch.tensor([requests[0].prompt_ids]))
    for output in outputs(core, requests):
        row = rows[output.id]
        if row.ended:
            continue
        assert output.token is not None
        row.add(output.token)
        if streamer is not None:
            streamer.put(torch.tensor([output.token]))
        if row.ended:
            core.cancel(output.id)
    if streamer is not None:
        streamer.end()
    return [row.tokens[len(row.prompt) :] for row in rows.values()]


class _Row:
    """The tokens of one row, and whether a stop string or a criterion ended it."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: list[int], stops: list[str], criteria: list[StoppingCriterion]
    ) -> None:
        self.prompt = prompt
        self.tokens = list(prompt)
        self.ended = False
        self._criteria = criteria
        # The text that is watched has no special tokens in it.
        self._stop_ids = tokenizer.special_ids & {tokenizer.backend.token_to_id(stop) for stop in stops}
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = [StopStrings([stop]) for stop in stops]
        # A stop string may begin in the prompt, but one that ends there is over. A character takes four tokens at most.
        longest = 4 * max(map(len, stops), default=0)
        text = self._detokenizer.push(prompt[-longest:]) if longest else ""
        for stop, watcher in zip(stops, self._stops, strict=True):
            watcher.push(text[len(text) - min(len(text), len(stop) - 1) :] if stop else "")

    def add(self, token: int) -> None:
        self.tokens.append(token)
        if self._stops:
            text = self._detokenizer.push([token])
            hits = [watcher.push(text)[1] is not None for watcher in self._stops]
            self.ended = any(hits) or token in self._stop_ids
        if self._criteria:
            ids = torch.tensor([self.tokens])
            self.ended |= any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in self._criteria)
