"""The native engine, as a child process."""

import asyncio
import contextlib
import itertools
import json
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from tuneserve.engines._native_backlog import Answer, Backlog
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
from tuneserve.engines.child import how_it_ended
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, Pooling, TokenChunk
from tuneserve.engines.kind import NativeOptions
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.sources import ResolvedSource

_CLOSE_SECONDS = 10.0
_decoder = msgspec.msgpack.Decoder(FromEngine)


class NativeEngine:
    """A running child process that serves one model and adapters of it.

    It is an :class:`~tuneserve.engines.contract.Engine`, :class:`~tuneserve.engines.contract.AdapterHost` and
    :class:`~tuneserve.engines.contract.Embedder`.
    """

    def __init__(
        self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, info: EngineInfo
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._info = info
        self._answers: dict[str, asyncio.Queue[Answer]] = {}
        self._stats: list[asyncio.Future[EngineStats]] = []
        self._changes: dict[int, asyncio.Future[Adapters]] = {}
        self._numbers = itertools.count()
        self._broken: str | None = None
        self._receiver = asyncio.create_task(self._receive())

    @classmethod
    async def start(
        cls,
        source: ResolvedSource,
        *,
        context_length: int | None = None,
        max_running: int | None = None,
        dtype: str = "auto",
        tensor_parallel: int = 1,
        native: NativeOptions | None = None,
    ) -> "NativeEngine":
        """Start the process and wait until it has loaded the model; see :class:`~tuneserve.native.EngineConfig`.

        Raises:
            InputError: the model cannot be loaded as it is.
            EngineError: the process died.
        """
        config = {
            "model_dir": str(source.model_dir),
            "weights_file": None if source.weights_file is None else str(source.weights_file),
            "adapter_dir": None if source.adapter_dir is None else str(source.adapter_dir),
            "tokenizer_dir": str(source.tokenizer_dir),
            "context_length": context_length,
            "max_running": max_running,
            "dtype": dtype,
            "tensor_parallel": tensor_parallel,
            **asdict(native or NativeOptions()),
        }
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tuneserve.native.server", str(theirs.fileno()), json.dumps(config),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            first = await _read(reader)
        except BaseException as error:
            await _end(process, writer)
            if isinstance(error, asyncio.IncompleteReadError | ConnectionError):
                raise EngineError(f"the native engine {_ending(process)} while it loaded; {_REMEDY}.") from None
            raise
        if not isinstance(first, Ready):
            await _end(process, writer)
            assert isinstance(first, NotStarted)
            raise first.error()
        return cls(process, reader, writer, first.info)

    @property
    def info(self) -> EngineInfo:
        """What is being served."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether the process lives and takes requests."""
        return self._broken is None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence; see the contract."""
        async with aclosing(self._ask(request.id, Generate(request))) as answers:
            async for answer in answers:
                assert isinstance(answer, Tokens)
                yield TokenChunk(
                    token_ids=answer.token_ids,
                    finish_reason=answer.finish_reason,
                    logprobs=answer.logprobs,
                    prompt_logprobs=answer.prompt_logprobs,
                    cached_tokens=answer.cached_tokens,
                )

    async def embed(self, prompt_ids: list[int], pooling: Pooling, adapter: str | None) -> list[float]:
        """Return the pooled hidden states of a prompt; see :class:`~tuneserve.engines.contract.Embedder`."""
        request_id = uuid4().hex
        async with aclosing(self._ask(request_id, Embed(request_id, prompt_ids, pooling, adapter))) as answers:
            answer = await anext(answers)
        assert isinstance(answer, Embedding)
        return answer.vector

    async def load_adapter(self, name: str, path: Path) -> None:
        """Serve an adapter; see :class:`~tuneserve.engines.contract.AdapterHost`."""
        number = next(self._numbers)
        await self._change(number, LoadAdapter(number, name, str(path.absolute())))

    async def unload_adapter(self, name: str) -> None:
        """Drop an adapter; see :class:`~tuneserve.engines.contract.AdapterHost`."""
        number = next(self._numbers)
        await self._change(number, UnloadAdapter(number, name))

    async def ended(self) -> str:
        """Wait until the process is gone without having been asked, and return how that came about."""
        await asyncio.wait({self._receiver})
        assert self._broken is not None
        return self._broken

    async def stats(self) -> EngineStats:
        """Ask for the load right now."""
        future: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats.append(future)
        await self._send(AskStats())
        return await future

    async def close(self) -> None:
        """Stop the process and wait until it is gone."""
        self._fail("the native engine was stopped")
        self._receiver.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._receiver
        await _end(self._process, self._writer)

    async def _ask(self, request_id: str, message: Generate | Embed) -> AsyncGenerator[Tokens | Embedding, None]:
        """Yield the answers to a request up to the last; it is cancelled if the generator is closed before."""
        answers = Backlog()
        self._answers[request_id] = answers
        finished = False
        try:
            await self._send(message)
            while not finished:
                answer = await answers.get()
                finished = not isinstance(answer, Tokens) or answer.finish_reason is not None
                if isinstance(answer, Refused):
                    raise RequestError(answer.message, answer.param)
                if isinstance(answer, Failed):
                    raise EngineError(answer.message)
                yield answer
        finally:
            del self._answers[request_id]
            if not finished and self._broken is None:
                # Without waiting, because this also runs while the generator is being closed.
                self._writer.write(frame(Cancel(request_id)))

    async def _change(self, number: int, message: LoadAdapter | UnloadAdapter) -> None:
        future: asyncio.Future[Adapters] = asyncio.get_running_loop().create_future()
        self._changes[number] = future
        try:
            await self._send(message)
            answer = await future
        finally:
            del self._changes[number]
        if answer.problem is not None:
            raise InputError(answer.problem)

    async def _send(self, message: ToEngine) -> None:
        if self._broken is not None:
            raise EngineError(f"{self._broken}; {_REMEDY}.")
        with contextlib.suppress(ConnectionError):  # the receiver notices, and says why
            self._writer.write(frame(message))
            await self._writer.drain()

    async def _receive(self) -> None:
        try:
            while True:
                self._deliver(await _read(self._reader))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _CLOSE_SECONDS)
            self._fail(f"the native engine {_ending(self._process)}")

    def _deliver(self, message: FromEngine) -> None:
        if isinstance(message, Stats):
            future = self._stats.pop(0)
            if not future.done():
                future.set_result(message.stats)
        elif isinstance(message, Adapters):
            self._info = msgspec.structs.replace(self._info, adapters=message.names)
            if message.number in self._changes and not self._changes[message.number].done():
                self._changes[message.number].set_result(message)
        elif isinstance(message, Tokens | Embedding | Refused | Failed) and message.id in self._answers:
            self._answers[message.id].put_nowait(message)

    def _fail(self, reason: str) -> None:
        self._broken = self._broken or reason
        for request_id, answers in self._answers.items():
            answers.put_nowait(Failed(request_id, f"{self._broken}; {_REMEDY}."))
        asked: list[asyncio.Future[Any]] = [*self._stats, *self._changes.values()]
        for future in asked:
            if not future.done():
                future.set_exception(EngineError(f"{self._broken}; {_REMEDY}."))
        self._stats.clear()


_REMEDY = "see its last lines above, and start it again"


async def _read(reader: asyncio.StreamReader) -> FromEngine:
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    message: FromEngine = _decoder.decode(await reader.readexactly(length))
    return message


async def _end(process: Process, writer: asyncio.StreamWriter) -> None:
    """Close the socket, upon which the process leaves; kill it if it does not."""
    writer.close()
    try:
        await asyncio.wait_for(process.wait(), _CLOSE_SECONDS)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _ending(process: Process) -> str:
    return "closed its connection" if process.returncode is None else how_it_ended(process.returncode)
