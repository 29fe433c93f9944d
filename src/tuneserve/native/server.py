"""The native engine as a process: ``python -m tuneserve.native.server FD CONFIG``.

FD is its end of a Unix socket pair, CONFIG an :class:`EngineConfig` in JSON. One thread reads what has arrived, runs
one step, writes what came of it. Adapters are read in another one, so that sequences go on meanwhile. When the socket
closes, whoever started it is gone, and so is it.
"""

import logging
import os
import select
import signal
import socket
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from tuneserve.engines._native_wire import (
    HEADER,
    Adapters,
    AskStats,
    Cancel,
    Embed,
    Embedding,
    Failed,
    FromEngine,
    Generate,
    LoadAdapter,
    NotStarted,
    Ready,
    Refused,
    Stats,
    ToEngine,
    Tokens,
    UnloadAdapter,
    frame,
)
from tuneserve.engines.contract import GenerationRequest, Pooling, SamplingParams
from tuneserve.errors import InputError, RequestError, TuneserveError
from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._load import EngineConfig
from tuneserve.native._start import FAILURES, first_line, load_or_say

_READ_BYTES = 1 << 20
# How soon an adapter that has been read is noticed where there is nothing else to do.
_READING_SECONDS = 0.01
_decoder = msgspec.msgpack.Decoder(ToEngine)


class _GoneError(Exception):
    """The other end has closed the socket."""


class _Connection:
    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._buffer = bytearray()

    def send(self, messages: list[FromEngine]) -> None:
        if messages:
            try:
                self._socket.sendall(b"".join(map(frame, messages)))
            except (BrokenPipeError, ConnectionResetError):
                raise _GoneError from None

    def receive(self, seconds: float | None) -> list[ToEngine]:
        """Return the messages that have arrived, waiting for the first so long; None is as long as it takes."""
        while select.select([self._socket], [], [], seconds)[0]:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise _GoneError
            self._buffer += data
            if messages := self._complete():
                return messages
        return []

    def _complete(self) -> list[ToEngine]:
        messages, start = [], 0
        while len(self._buffer) >= start + HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(_decoder.decode(memoryview(self._buffer)[start + HEADER.size : end]))
            start = end
        del self._buffer[:start]
        return messages


class _AdapterChanges:
    """Adapters on their way in, each read in a thread of its own, and out, each until its last sequence has ended."""

    def __init__(self, core: NativeCore) -> None:
        self._core = core
        self._reading: dict[Future[Any], LoadAdapter] = {}
        self._leaving: list[UnloadAdapter] = []
        self._reader = ThreadPoolExecutor(1, "adapters")

    @property
    def pending(self) -> bool:
        """Whether one is being read."""
        return bool(self._reading)

    def start(self, message: LoadAdapter | UnloadAdapter) -> list[FromEngine]:
        """Begin; what is refused at once is answered."""
        if isinstance(message, LoadAdapter):
            self._reading[self._reader.submit(self._core.read_adapter, Path(message.path))] = message
            return []
        try:
            self._core.unload_adapter(message.name)
        except InputError as error:
            return [self._answer(message.number, str(error))]
        self._leaving.append(message)
        return []

    def advance(self) -> list[FromEngine]:
        """Put in what has been read; return the answers to what is finished."""
        answers: list[FromEngine] = []
        for future in [future for future in self._reading if future.done()]:
            message, problem = self._reading.pop(future), None
            try:
                self._core.put_adapter(message.name, future.result())
            except TuneserveError as error:
                problem = str(error)
            except FAILURES as error:
                problem = f"the adapter {message.name} cannot be loaded ({first_line(error)}); free some memory."
            answers.append(self._answer(message.number, problem))
        gone = [message for message in self._leaving if not self._core.is_unloading(message.name)]
        self._leaving = [message for message in self._leaving if message not in gone]
        return answers + [self._answer(message.number) for message in gone]

    def _answer(self, number: int, problem: str | None = None) -> Adapters:
        return Adapters(number, self._core.info.adapters, problem)


def _handle(core: NativeCore, changes: _AdapterChanges, message: ToEngine) -> list[FromEngine]:
    if isinstance(message, Generate):
        return _add(core, message.request)
    if isinstance(message, Embed):
        params = SamplingParams(max_tokens=1, temperature=0)
        request = GenerationRequest(
            id=message.id, prompt_ids=message.prompt_ids, params=params, adapter=message.adapter
        )
        return _add(core, request, message.pooling)
    if isinstance(message, LoadAdapter | UnloadAdapter):
        return changes.start(message)
    if isinstance(message, Cancel):
        core.cancel(message.id)
    elif isinstance(message, AskStats):
        return [Stats(core.stats())]
    return []


def _add(core: NativeCore, request: GenerationRequest, pooling: Pooling | None = None) -> list[FromEngine]:
    try:
        core.add(request, pooling)
    except RequestError as error:
        return [Refused(request.id, str(error), error.param)]
    return []


def _advance(core: NativeCore) -> list[FromEngine]:
    results: list[FromEngine] = []
    for output in core.step():
        if output.failed:
            results.append(Failed(output.id, output.failed))
        elif output.refused:
            results.append(Refused(output.id, output.refused, "grammar"))
        elif output.pooled is not None:
            results.append(Embedding(output.id, output.pooled))
        else:
            results.append(_tokens(output))
    return results


def _tokens(output: Output) -> Tokens:
    assert output.token is not None
    logprobs = None if output.logprob is None else [output.logprob]
    return Tokens(
        output.id, [output.token], output.finish_reason, logprobs, output.prompt_logprobs, output.cached_tokens
    )


def serve(connection: _Connection, config: EngineConfig) -> None:
    """Load, then answer until the other end goes away."""
    core = load_or_say(lambda: NativeCore(config), "the native engine could not load the model")
    if isinstance(core, NotStarted):
        connection.send([core])
        return
    connection.send([Ready(core.info)])
    changes = _AdapterChanges(core)
    while True:
        seconds = None if core.idle else 0.0
        for message in connection.receive(_READING_SECONDS if core.idle and changes.pending else seconds):
            connection.send(_handle(core, changes, message))
        connection.send(_advance(core))
        connection.send(changes.advance())


def main() -> None:
    """Serve on the socket that the command line names."""
    # Ctrl-C in a terminal reaches the whole group; the gateway drains and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # How the model was loaded is worth a line; whoever started the process has its stderr.
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    config = msgspec.json.decode(sys.argv[2], type=EngineConfig)
    try:
        serve(_Connection(int(sys.argv[1])), config)
    except _GoneError:
        # Skipping the interpreter's teardown gives gigabytes of weights back at once.
        os._exit(0)


if __name__ == "__main__":
    main()
