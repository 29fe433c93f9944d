"""One HTTP connection, on which nothing may take forever: not the head of a request, and not taking an answer."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
STALLED_SECONDS = 60.0
MAX_HEAD_BYTES = 32 << 10


class Connection(H11Protocol):
    """Uvicorn's, which is dropped when a request's head takes too long, or the client stops reading its answer."""

    head_seconds = HEAD_SECONDS
    stalled_seconds = STALLED_SECONDS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the head of a request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Wait for the next request; the idle connection itself is closed by uvicorn's own timer."""
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        """Note that the client does not take what is sent."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it does."""
        super().resume_writing()
        _cancel(self._stall_timer)
        self._stall_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer."""
        super().connection_lost(exc)
        _cancel(self._head_timer)
        self._head_timer = None
        _cancel(self._stall_timer)
        self._stall_timer = None

    def _watch_head(self) -> None:
        """Run the timer exactly while a part of a head is there."""
        if self.conn.their_state is not h11.IDLE or not self.conn.trailing_data[0]:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
