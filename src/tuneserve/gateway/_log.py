"""The log: one line per request and what went wrong, as text or JSON, written beside the event loop.

A line that cannot be written, because the disk is full or nobody reads the pipe, is dropped and counted, and serving
goes on.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from tuneserve.gateway._record import Record, current

_QUEUED_LINES = 10_000
_FLUSH_SECONDS = 2.0
_MAX_TEXT = 2000
# What monitors ask every few seconds.
_PROBES = ("/health", "/ready", "/metrics")
_logger = logging.getLogger("tuneserve.gateway.access")
_dropped = 0

LogFormat = Literal["text", "json"]


def dropped_lines() -> int:
    """Return how many lines could not be written since the program began."""
    return _dropped


def log_request(record: Record, status: int) -> None:
    """Log that a request was answered; 499 is a client that left first. Probes are for debugging alone."""
    level = logging.DEBUG if record.path in _PROBES else logging.INFO
    if not _logger.isEnabledFor(level):
        return
    first = record.first_token
    fields: dict[str, Any] = {
        "request_id": record.id,
        "method": record.method[:16],
        "path": record.path[:_MAX_TEXT],
        "status": status,
        "key": None if record.key is None else record.key.name,
        "model": record.model,
        "prompt_tokens": record.prompt_tokens,
        "generated_tokens": record.generated_tokens,
        "first_token_seconds": None if first is None else round(first - record.arrived, 4),
        "seconds": round(time.monotonic() - record.arrived, 4),
    }
    if record.body is not None:
        fields["body"] = record.body.decode("utf-8", "replace")
    given = {name: value for name, value in fields.items() if value is not None}
    _logger.log(level, "request", extra={"fields": given})


@contextmanager
def logging_to(stream: TextIO, form: LogFormat) -> Iterator[None]:
    """Write what tuneserve logs to ``stream``, one line per request among it."""
    logger = logging.getLogger("tuneserve")
    handler = _Handler(stream, _JsonLines() if form == "json" else _TextLines())
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        handler.close()


class _Handler(logging.Handler):
    """Hands lines to a thread, for a write can take as long as whoever reads it likes."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUED_LINES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            _drop()

    def close(self) -> None:
        """Write what is left, as far as that takes no longer than two seconds."""
        try:
            self._lines.put(None, timeout=_FLUSH_SECONDS)
        except queue.Full:
            return
        self._thread.join(_FLUSH_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                _drop()


def _drop() -> None:
    global _dropped
    _dropped += 1


class _JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


class _TextLines(logging.Formatter):
    """One line of text; what clients say is escaped, so that they write no lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
        fields = " ".join(f"{name}={_plain(value)}" for name, value in _fields(record).items())
        line = f"{moment} {record.levelname.lower()} {record.getMessage()}{' ' if fields else ''}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] | None = getattr(record, "fields", None)
    if fields is not None:
        return fields
    request = current.get()
    return {} if request is None else {"request_id": request.id}


def _plain(value: object) -> str:
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else json.dumps(text)
