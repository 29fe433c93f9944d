"""A client cheap enough to measure with: HTTP/1.1 over plain asyncio, events found by their blank lines."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


class Lost(Exception):  # noqa: N818 - it names what happened to an answer
    """An answer that did not come to its end, and why."""


@dataclass
class Answer:
    """One streamed answer: its text, how it ended, and when its events came (:func:`time.perf_counter`)."""

    text: str = ""
    reason: str | None = None
    error: dict[str, Any] | None = None
    moments: list[float] = field(default_factory=list)
    began: float = 0.0

    @property
    def first_seconds(self) -> float:
        """From the request to the first event with text."""
        return self.moments[0] - self.began


async def open_request(
    host: str, port: int, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send one request on a connection of its own."""
    reader, writer = await asyncio.open_connection(host, port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a chunked stream.

    Raises:
        Lost: the status is not 200, or the stream ended before ``[DONE]``.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status != 200:
        raise Lost(f"status {status}")
    buffer = b""
    while True:
        size = int(await reader.readline() or b"0", 16)
        if not size:
            raise Lost("ended early")
        buffer += (await reader.readexactly(size + 2))[:-2]
        *complete, buffer = buffer.split(b"\n\n")
        for event in complete:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                return
            yield json.loads(data)


async def stream(host: str, port: int, body: dict[str, Any]) -> Answer:
    """Ask for a streamed chat completion and read it to its end.

    Raises:
        Lost: it did not come to its end.
        OSError: the connection broke.
    """
    answer = Answer(began=time.perf_counter())
    reader, writer = await open_request(host, port, {**body, "stream": True})
    try:
        async for event in events(reader):
            if "error" in event:
                answer.error = event["error"]
                break
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    answer.text += text
                    answer.moments.append(time.perf_counter())
                answer.reason = choice["finish_reason"] or answer.reason
    except asyncio.IncompleteReadError:
        raise Lost("ended early") from None
    finally:
        writer.close()
    return answer


async def get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Return the status and the body of one GET."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body
    finally:
        writer.close()
