"""From token ids to text: one sequence per prompt, detokenised as it comes and cut at stop strings."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from uuid import uuid4

from tuneserve.engines.contract import FinishReason, GenerationRequest, SamplingParams
from tuneserve.errors import EngineError
from tuneserve.gateway._metrics import Metrics, SequenceTimer
from tuneserve.gateway._served import ServedModel
from tuneserve.text import Detokenizer, StopStrings


@dataclass(frozen=True)
class Job:
    """One sequence to generate."""

    prompt_ids: list[int]
    params: SamplingParams
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """Text that is ready to be sent, the number of tokens that came with it, and why it is the last, if it is."""

    text: str
    tokens: int
    finish_reason: FinishReason | None


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
    request = GenerationRequest(id=uuid4().hex, prompt_ids=job.prompt_ids, params=job.params, adapter=served.adapter)
    text = _Text(served, job)
    async with aclosing(served.engine.generate(request)) as chunks:
        async for chunk in chunks:
            timer.add(len(chunk.token_ids))
            piece = text.push(chunk.token_ids, chunk.finish_reason)
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

    def __init__(self, served: ServedModel, job: Job) -> None:
        self._end_ids = served.tokenizer.end_token_ids
        self._detokenizer = Detokenizer(served.tokenizer)
        self._stops = StopStrings(job.stop)
        self._unstoppable = job.params.min_tokens

    def push(self, token_ids: list[int], reason: FinishReason | None) -> Piece:
        """Return what these tokens bring; nothing that follows a stop string is counted."""
        text, stop = "", None
        for count, token in enumerate(token_ids, 1):
            ends = reason == "stop" and count == len(token_ids) and token in self._end_ids
            new = "" if ends else self._detokenizer.push([token])
            if self._unstoppable > 0:
                self._unstoppable -= 1
                text += new
                continue
            new, stop = self._stops.push(new)
            text += new
            if stop is not None:
                return Piece(text, count, "stop")
        if reason is not None:
            new, stop = self._stops.push(self._detokenizer.finish())
            text += new + (self._stops.finish() if stop is None else "")
        return Piece(text, len(token_ids), "stop" if stop is not None else reason)
