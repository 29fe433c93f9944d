"""Sending what is generated, whole or as server-sent events, for as long as the client listens."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tuneserve.gateway._errors import as_api_error, json_response
from tuneserve.gateway._generate import Emit, Job, Piece, generate
from tuneserve.gateway._metrics import Metrics
from tuneserve.gateway._parts import PlainReader, Reader, Sample
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._shapes import Event, Shape, Usage

_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, and cancel it the moment the client is gone; the request body must have been read."""
    task = asyncio.create_task(work)
    listener = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        listener.cancel()
        task.cancel()
        await asyncio.wait({task, listener})
    if not task.cancelled():
        task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Work:
    """What one request asks for.

    ``jobs`` has ``count`` samples of each prompt after each other. ``arrived`` is its :func:`time.monotonic`.
    ``renamed`` says what fields are called in this request that errors know by another name. ``make_reader``
    makes what takes the text of one sample apart.
    """

    served: ServedModel
    shape: Shape
    jobs: list[Job]
    stream: bool
    metrics: Metrics
    arrived: float
    count: int = 1
    renamed: Mapping[str, str] = field(default_factory=dict)
    make_reader: Callable[[], Reader] = PlainReader


class Answer(Response):
    """Generates while it is being sent. What fails before the first token is answered with an HTTP status."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work
        self._samples = [Sample(work.make_reader(), job.prompt_ids) for job in work.jobs]
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        sending = self._stream(send) if self._work.stream else self._whole(scope, receive, send)
        await until_disconnect(receive, sending)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def keep(index: int, piece: Piece) -> None:
            self._samples[index].take(piece)

        await self._generate(keep)
        whole = partial(self._work.shape.whole, self._samples, self._usage())
        # A scored prompt can take seconds, in which others are to be answered.
        content = await asyncio.to_thread(whole) if any(sample.prompt for sample in self._samples) else whole()
        answer = json_response(content)
        await answer(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        shape = self._work.shape

        async def pass_on(index: int, piece: Piece) -> None:
            sample = self._samples[index]
            parts = sample.take(piece)
            await self._begin(send)
            await self._send(send, shape.events(index, sample, piece, parts))

        try:
            await self._generate(pass_on)
            await self._send(send, shape.end(self._samples, self._usage()), shape.ending)
        except Exception as error:
            if not self._started:
                raise
            await self._send(send, [shape.failure(as_api_error(error).renamed(self._work.renamed))])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _generate(self, emit: Emit) -> None:
        work = self._work
        try:
            await generate(work.served, work.jobs, work.metrics, work.arrived, emit)
        except Exception as error:
            raise as_api_error(error).renamed(work.renamed) from None

    def _usage(self) -> Usage:
        # Each prompt counts once; what one sample of it finds in the cache may be what another one has computed.
        starts = range(0, len(self._samples), self._work.count)
        cached = [_least(self._samples[start : start + self._work.count]) for start in starts]
        return Usage(
            sum(len(self._work.jobs[start].prompt_ids) for start in starts),
            sum(sample.tokens for sample in self._samples),
            sum(sample.reasoning_tokens for sample in self._samples),
            sum(each for each in cached if each is not None) if any(each is not None for each in cached) else None,
        )

    async def _begin(self, send: Send) -> None:
        if self._started:
            return
        self._started = True
        start = Response(headers=_STREAM_HEADERS, media_type="text/event-stream")
        headers = [header for header in start.raw_headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send(send, self._work.shape.start(self._usage()))

    async def _send(self, send: Send, events: Sequence[Event], ending: bytes = b"") -> None:
        data = b"".join(map(_encoded, events)) + ending
        if data:
            await send({"type": "http.response.body", "body": data, "more_body": True})


def _least(samples: Sequence[Sample]) -> int | None:
    return min((sample.cached for sample in samples if sample.cached is not None), default=None)


def _encoded(event: Event) -> bytes:
    name = b"" if event.name is None else b"event: " + event.name.encode() + b"\n"
    return name + b"data: " + msgspec.json.encode(event.data) + b"\n\n"
