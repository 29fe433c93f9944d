"""The native engine as a process: ``python -m tuneserve.native.server FD CONFIG``.

FD is its end of a Unix socket pair, CONFIG an :class:`EngineConfig` in JSON. One thread reads what has arrived, runs
one step, writes what came of it. When the socket closes, whoever started it is gone, and so is it.
"""

import logging
import os
import select
import signal
import socket
import sys

import msgspec

from tuneserve.engines._native_wire import (
    HEADER,
    AskStats,
    Cancel,
    Failed,
    FromEngine,
    Generate,
    NotStarted,
    Ready,
    Refused,
    Stats,
    ToEngine,
    Tokens,
    frame,
)
from tuneserve.errors import RequestError, TuneserveError
from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._load import EngineConfig

_READ_BYTES = 1 << 20
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

    def receive(self, wait: bool) -> list[ToEngine]:
        """Return the messages that have arrived, waiting for the first if asked to."""
        while wait or select.select([self._socket], [], [], 0)[0]:
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


def _start(config: EngineConfig) -> NativeCore | NotStarted:
    try:
        return NativeCore(config)
    except TuneserveError as error:
        return NotStarted(str(error), is_input=True)
    except (MemoryError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        return NotStarted(
            f"the native engine could not load the model ({reason}); see the lines above.", is_input=False
        )


def _handle(core: NativeCore, message: ToEngine) -> list[FromEngine]:
    if isinstance(message, Generate):
        try:
            core.add(message.request)
        except RequestError as error:
            return [Refused(message.request.id, str(error), error.param)]
    elif isinstance(message, Cancel):
        core.cancel(message.id)
    elif isinstance(message, AskStats):
        return [Stats(core.stats())]
    return []


def _advance(core: NativeCore) -> list[FromEngine]:
    results: list[FromEngine] = []
    for output in core.step():
        if output.failed:
            results.append(Failed(output.id, output.failed))
        elif output.refused:
            results.append(Refused(output.id, output.refused, "grammar"))
        else:
            results.append(_tokens(output))
    return results


def _tokens(output: Output) -> Tokens:
    assert output.token is not None
    logprobs = None if output.logprob is None else [output.logprob]
    return Tokens(output.id, [output.token], output.finish_reason, logprobs, output.prompt_logprobs)


def serve(connection: _Connection, config: EngineConfig) -> None:
    """Load, then answer until the other end goes away."""
    core = _start(config)
    if isinstance(core, NotStarted):
        connection.send([core])
        return
    connection.send([Ready(core.info)])
    while True:
        for message in connection.receive(wait=core.idle):
            connection.send(_handle(core, message))
        connection.send(_advance(core))


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
