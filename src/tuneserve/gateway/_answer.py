"""Sending what is generated, whole or as server-sent events, for as long as the client listens."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tuneserve.gateway._errors import as_api_error, json_response
from tuneserve.gateway._generate import Emit, Job, Piece, generate
from tuneserve.gateway._metrics import Metrics
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._shapes import Json, Result, Shape, usage_of

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
    """What one request asks for. ``arrived`` is its :func:`time.monotonic`."""

    served: ServedModel
    shape: Shape
    jobs: list[Job]
    stream: bool
    include_usage: bool
    metrics: Metrics
    arrived: float


class Answer(Response):
    """Generates while it is being sent. What fails before the first token is answered with an HTTP status."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work
        self._results = [Result() for _ in work.jobs]
        self._opened = [False for _ in work.jobs]
        self._started = False
        self._tokens = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        sending = self._stream(send) if self._work.stream else self._whole(scope, receive, send)
        await until_disconnect(receive, sending)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def keep(index: int, piece: Piece) -> None:
            self._tokens += piece.tokens
            self._results[index].text += piece.text
            self._results[index].finish_reason = piece.finish_reason

        await self._generate(keep)
        answer = json_response(self._work.shape.whole(self._results, self._usage()))
        await answer(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        async def pass_on(index: int, piece: Piece) -> None:
            self._tokens += piece.tokens
            await self._send(send, self._chunks(index, piece))

        shape = self._work.shape
        try:
            await self._generate(pass_on)
            last = [shape.usage(self._usage())] if self._work.include_usage else []
            await self._send(send, last, end=b"data: [DONE]\n\n")
        except Exception as error:
            if not self._started:
                raise
            await self._send(send, [as_api_error(error).body()])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _generate(self, emit: Emit) -> None:
        work = self._work
        await generate(work.served, work.jobs, work.metrics, work.arrived, emit)

    def _chunks(self, index: int, piece: Piece) -> list[Json]:
        shape = self._work.shape
        chunks = []
        if not self._opened[index]:
            self._opened[index] = True
            chunks.append(shape.opening(index))
        if piece.text:
            chunks.append(shape.chunk(index, piece.text, None))
        if piece.finish_reason is not None:
            chunks.append(shape.chunk(index, None, piece.finish_reason))
        return [chunk for chunk in chunks if chunk is not None]

    def _usage(self) -> Json:
        return usage_of(sum(len(job.prompt_ids) for job in self._work.jobs), self._tokens)

    async def _send(self, send: Send, events: list[Json], end: bytes = b"") -> None:
        if not self._started:
            self._started = True
            start = Response(headers=_STREAM_HEADERS, media_type="text/event-stream")
            headers = [header for header in start.raw_headers if header[0] != b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        data = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events) + end
        if data:
            await send({"type": "http.response.body", "body": data, "more_body": True})
