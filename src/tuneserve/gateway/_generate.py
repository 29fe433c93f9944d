"""From token ids to text: one sequence per sample, detokenised as it comes and cut at stop strings."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from uuid import uuid4

from tuneserve.engines.contract import FinishReason, GenerationRequest, SamplingParams, TokenChunk, TokenLogprob
from tuneserve.errors import EngineError
from tuneserve.gateway._metrics import Metrics, SequenceTimer
from tuneserve.gateway._served import ServedModel
from tuneserve.text import Detokenizer, StopStrings, Tokenizer


@dataclass(frozen=True)
class Job:
    """One sequence to generate; ``visible`` are special tokens that have a text in it.

    With ``shows_end``, the stop string or the end token that ends it has one, too.
    """

    prompt_ids: list[int]
    params: SamplingParams
    stop: tuple[str, ...]
    priority: int = 0
    visible: frozenset[int] = frozenset()
    shows_end: bool = False


@dataclass(frozen=True)
class ScoredToken:
    """A token's log-probability, and the character of the text at which it begins."""

    logprob: TokenLogprob
    offset: int


@dataclass(frozen=True)
class Piece:
    """Text that is ready to be sent, the tokens that came with it, and why it is the last, if it is.

    ``stop`` is the stop string that ended it. ``scored`` are the tokens of which the text so far consists and that were
    not in an earlier piece. ``prompt`` comes once, where it was asked for, and so does ``cached``, the number of tokens
    of the prompt that were found in the engine's cache, where the engine says it.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason | None
    stop: str | None = None
    scored: tuple[ScoredToken, ...] = ()
    prompt: tuple[TokenLogprob, ...] | None = None
    cached: int | None = None


Emit = Callable[[int, Piece], Awaitable[None]]


async def generate(served: ServedModel, jobs: list[Job], metrics: Metrics, arrived: float, emit: Emit) -> None:
    """Generate all ``jobs`` together; ``emit`` gets each piece with the index of its job, the last with its reason.

    Cancelling this cancels the sequences. When one fails, all end.

    Raises:
        RequestError: the engine can never serve one of them.
        EngineError: it failed on one of them.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for index, job in enumerate(jobs):
                timer = metrics.sequence(len(job.prompt_ids), arrived)
                group.create_task(_sequence(served, job, timer, index, emit))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _sequence(served: ServedModel, job: Job, timer: SequenceTimer, index: int, emit: Emit) -> None:
    request = GenerationRequest(
        id=uuid4().hex, prompt_ids=job.prompt_ids, params=job.params, adapter=served.adapter, priority=job.priority
    )
    text = _Text(served.tokenizer, job)
    async with aclosing(served.engine.generate(request)) as chunks:
        async for chunk in chunks:
            timer.add(len(chunk.token_ids))
            piece = text.push(chunk)
            if piece.finish_reason is not None:
                break
            await emit(index, piece)
        else:
            raise EngineError("the engine ended a sequence without saying why; report it with the engine's version.")
    # Only now, so that the engine is free of the sequence before a slow client takes its last piece.
    timer.finish(piece.finish_reason)
    await emit(index, piece)


class _Text:
    """The text of one sequence. Stop strings are looked for in what comes after the first ``min_tokens`` tokens."""

    def __init__(self, tokenizer: Tokenizer, job: Job) -> None:
        self._end_ids = frozenset() if job.shows_end else tokenizer.end_token_ids
        self._shows_end = job.shows_end
        self._detokenizer = Detokenizer(tokenizer, job.visible)
        self._stops = StopStrings(job.stop)
        self._unstoppable = job.params.min_tokens
        self._scored: list[ScoredToken] = []
        self._read = 0
        self._shown = 0

    def push(self, chunk: TokenChunk) -> Piece:
        """Return what these tokens bring; nothing that follows a stop string is counted."""
        text, stop, reason = "", None, chunk.finish_reason
        for count, token in enumerate(chunk.token_ids, 1):
            ends = reason == "stop" and count == len(chunk.token_ids) and token in self._end_ids
            if chunk.logprobs is not None and not ends:
                self._scored.append(ScoredToken(chunk.logprobs[count - 1], self._read))
            new = "" if ends else self._detokenizer.push([token])
            self._read += len(new)
            if self._unstoppable > 0:
                self._unstoppable -= 1
                text += new
                continue
            new, stop = self._stops.push(new)
            text += new
            if stop is not None:
                return self._stopped(text, chunk.token_ids[:count], stop, chunk)
        if reason is not None:
            new, stop = self._stops.push(self._detokenizer.finish())
            text += new
            if stop is not None:
                return self._stopped(text, chunk.token_ids, stop, chunk)
            text += self._stops.finish()
        return self._piece(text, chunk.token_ids, reason, None, chunk)

    def _stopped(self, text: str, ids: list[int], stop: str, chunk: TokenChunk) -> Piece:
        return self._piece(text + (stop if self._shows_end else ""), ids, "stop", stop, chunk)

    def _piece(
        self, text: str, ids: list[int], reason: FinishReason | None, stop: str | None, chunk: TokenChunk
    ) -> Piece:
        self._shown += len(text)
        whole = reason is not None and stop is None
        ready = tuple(each for each in self._scored if whole or each.offset < self._shown)
        del self._scored[: len(ready)]
        prompt = None if chunk.prompt_logprobs is None else tuple(chunk.prompt_logprobs)
        return Piece(text, ids, reason, stop, ready, prompt, chunk.cached_tokens)
