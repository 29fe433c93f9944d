"""A scripted engine, a byte-level tokenizer, and the gateway over them, in this process or in a thread."""

import asyncio
import json
import math
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from tuneserve.engines.contract import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenChunk,
    TokenLogprob,
)
from tuneserve.errors import EngineError
from tuneserve.gateway import ServedModel, Settings, create_app
from tuneserve.gateway._connection import Connection
from tuneserve.text import open_chat_template, open_tokenizer

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% if not (continue_final_message and loop.last) %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{{ mood or '' }}"
)


def write_tokenizer(directory: Path, template: str | None = TEMPLATE) -> Path:
    """Write a tokenizer with one token per byte, two special tokens, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = FastTokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START, END])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "bos_token": None}))
    (directory / "config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_to_id(END)}))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


@dataclass
class FakeEngine:
    """Answers every request with ``answer``, one token per chunk; pauses after ``hold_after`` until released."""

    answer: list[int]
    context_length: int = 256
    hold_after: int | None = None
    fail_after: int | None = None
    refuse: Exception | None = None
    broken_prompt: list[int] | None = None
    ready: bool = True
    requests: list[GenerationRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    closed: bool = False
    lacks: tuple[str, ...] = ()
    prioritises: bool = True

    def __post_init__(self) -> None:
        self.holding = threading.Semaphore(0)
        self.has_cancelled = threading.Semaphore(0)
        self._released = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="fake", version="1", context_length=self.context_length, vocab_size=258, dtype="float32",
            device="cpu", weight_bytes=1, max_running=8, lacks=self.lacks, prioritises=self.prioritises,
        )  # fmt: skip

    @property
    def prompt(self) -> list[int]:
        return self.requests[-1].prompt_ids

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        self._loop = asyncio.get_running_loop()
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        reason: FinishReason | None = None
        try:
            for count, token in enumerate(self.answer, 1):
                if self.hold_after is not None and count > self.hold_after:
                    self.holding.release()
                    await self._released.wait()
                if request.prompt_ids == self.broken_prompt or self._fails(count):
                    raise EngineError("the fake engine broke, as it was told to; do not worry.")
                reason = _reason(count, token, request)
                params, first = request.params, count == 1
                await asyncio.sleep(0)  # as an engine in another process, which is always waited for
                yield TokenChunk(
                    token_ids=[token],
                    finish_reason=reason,
                    logprobs=None if params.logprobs is None else [_scored(token, params.logprobs)],
                    prompt_logprobs=None
                    if params.prompt_logprobs is None or not first
                    else [_scored(each, params.prompt_logprobs) for each in request.prompt_ids[1:]],
                )
        except (asyncio.CancelledError, GeneratorExit):
            if reason is None:
                self.cancelled.append(request.id)
                self.has_cancelled.release()
            raise

    def _fails(self, count: int) -> bool:
        return self.closed or (self.fail_after is not None and count > self.fail_after)

    async def stats(self) -> EngineStats:
        return EngineStats(running=3, waiting=2, cache_usage=0.25)

    async def close(self) -> None:
        self.closed = True
        self._released.set()

    def release(self) -> None:
        """Let held sequences go on, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._released.set)


def _scored(token: int, count: int) -> TokenLogprob:
    """Say that the token after this one in the vocabulary is the likeliest, and this one the second."""
    return TokenLogprob(token, -1.0, [((token + 1) % 256, -0.5), (token, -1.0), (0, -math.inf)][:count])


def _reason(count: int, token: int, request: GenerationRequest) -> FinishReason | None:
    if token in request.params.stop_token_ids:
        return "stop"
    return "length" if count == request.params.max_tokens else None


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_served(directory: Path, engine_type: type[FakeEngine] = FakeEngine, **options: Any) -> ServedModel:
    """Return a served model named ``tuned`` whose engine greets."""
    tokenizer = open_tokenizer(directory)
    engine = engine_type(tokenizer.encode("Hello, wörld!" + END, add_special_tokens=False), **options)
    return ServedModel("tuned", tokenizer, open_chat_template(directory), engine, created=1_700_000_000)


@pytest.fixture
def served(tokenizer_dir: Path) -> ServedModel:
    return make_served(tokenizer_dir)


@pytest.fixture
def engine(served: ServedModel) -> FakeEngine:
    assert isinstance(served.engine, FakeEngine)
    return served.engine


@pytest.fixture
async def client(served: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client to the application in this process."""
    transport = httpx.ASGITransport(create_app(served, Settings(max_body_bytes=100_000)))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


@contextmanager
def running_server(
    served: ServedModel, settings: Settings | None = None, connection: type[Connection] = Connection
) -> Iterator[str]:
    """Serve on a free port from a thread; the value is the URL."""
    config = uvicorn.Config(
        create_app(served, settings), http=connection, lifespan="off", log_config=None, log_level="error"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            assert isinstance(served.engine, FakeEngine)
            served.engine.release()
            server.should_exit = True
            thread.join()


def chat_body(text: str = "Hi", /, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    return {"model": "tuned", "messages": [{"role": "user", "content": text}], **fields}


def sse_events(text: str) -> list[Any]:
    """Return the events of a stream, ``[DONE]`` as that string."""
    assert text.endswith("\n\n")
    data = [line.removeprefix("data: ") for line in text.removesuffix("\n\n").split("\n\n")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def named_events(text: str) -> list[tuple[str, Any]]:
    """Return the events of a stream with their names."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
