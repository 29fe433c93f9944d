"""Protects: Ollama is given the model and asked for text as its API documents, and token ids survive the way."""

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tuneserve.engines.contract import Engine, GenerationRequest, Grammar, SamplingParams, TokenChunk
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.engines.ollama import server_url
from tuneserve.engines.registry import find_engine
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.sources import ResolvedSource, resolve

Make = Callable[..., Path]
FIELDS = {
    "model", "prompt", "raw", "think", "stream", "truncate", "shift", "keep_alive", "logprobs", "top_logprobs",
    "options", "format",
}  # fmt: skip
OPTIONS = {
    "num_ctx", "num_predict", "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
    "presence_penalty", "frequency_penalty", "seed", "stop",
}  # fmt: skip
BOS, END, HE = 258, 259, 256


class OllamaServer(ThreadingHTTPServer):
    """Stands in for Ollama; ``script`` is the text that it answers with, cut as it would cut it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.version = "0.13.0"
        self.blobs: dict[str, int] = {}
        self.models: dict[str, Any] = {}
        self.uploads = 0
        self.requests: list[dict[str, Any]] = []
        self.script: list[tuple[str, list[str]]] = []
        self.error: str | None = None
        self.endless = False
        self.left = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: OllamaServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer(200, {"version": self.server.version})

    def do_HEAD(self) -> None:
        self.answer(200 if self.path.rpartition("/")[2] in self.server.blobs else 404, None)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            digest = self.path.rpartition("/")[2]
            assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.server.blobs[digest] = len(data)
            self.server.uploads += 1
            self.answer(201, None)
            return
        body = json.loads(data)
        if self.path == "/api/create":
            self.create(body)
        elif self.path == "/api/generate" and "prompt" not in body:
            assert body["model"] in self.server.models
            self.server.requests.append(body)
            self.answer(200, {"model": body["model"], "response": "", "done": True, "done_reason": "load"})
        elif self.path == "/api/generate":
            self.generate(body)
        else:
            self.answer(404, {"error": "not found"})

    def create(self, body: dict[str, Any]) -> None:
        assert set(body) <= {"model", "files", "parameters"}
        if not set(body["files"].values()) <= set(self.server.blobs):
            self.answer(400, {"error": "blob not found"})
            return
        self.server.models[body["model"]] = body
        self.lines([{"status": "parsing GGUF"}, {"status": "success"}])

    def generate(self, body: dict[str, Any]) -> None:
        self.server.requests.append(body)
        if not (set(body) <= FIELDS and set(body["options"]) <= OPTIONS and body["raw"]):
            self.answer(500, {"error": "unexpected fields"})
            return
        if self.server.error is not None:
            self.answer(400, {"error": self.server.error})
            return
        if self.server.endless:
            self.send_response(200)
            self.end_headers()
        while self.server.endless:
            try:
                self.wfile.write(json.dumps(self.piece("a", ["a"], 0)).encode() + b"\n")
            except OSError:
                self.server.left.set()
                return
        pieces = self.server.script[: body["options"]["num_predict"]] if body["options"]["num_predict"] > 0 else None
        lines = [self.piece(text, tokens, body["top_logprobs"]) for text, tokens in pieces or self.server.script]
        reason = "length" if pieces else "stop"
        self.lines([*lines, {"model": "m", "response": "", "done": True, "done_reason": reason, "eval_count": 1}])

    @staticmethod
    def piece(text: str, tokens: list[str], count: int) -> dict[str, Any]:
        tops = [{"token": token, "logprob": -1.0 - rank} for rank, token in enumerate(("he", "!", "??"))][:count]
        entries = [{"token": token, "logprob": -0.5, **({"top_logprobs": tops} if count else {})} for token in tokens]
        return {"model": "m", "response": text, "done": False, "logprobs": entries}

    def lines(self, values: list[Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        self.wfile.write(b"".join(json.dumps(value).encode() + b"\n" for value in values))

    def answer(self, status: int, value: Any) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OllamaServer]:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    with OllamaServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def source(tmp_path: Path, write_gguf_model: Make, server: OllamaServer) -> ResolvedSource:
    return resolve(write_gguf_model(tmp_path / "My Model.gguf"))


@asynccontextmanager
async def running(source: ResolvedSource, **options: Any) -> AsyncIterator[Engine]:
    engine = await find_engine("ollama").start(source, (), ServeOptions(**options), "My Model")
    try:
        yield engine
    finally:
        await engine.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


async def collect(engine: Engine, prompt: list[int], **params: Any) -> list[TokenChunk]:
    request = GenerationRequest(id="r", prompt_ids=prompt, params=SamplingParams(**params))
    return [chunk async for chunk in engine.generate(request)]


def ids(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def encode(text: str) -> list[int]:
    """Return a token per byte, of the vocabulary whose first tokens are the printable ones."""
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet += [byte for byte in range(256) if byte not in alphabet]
    return [alphabet.index(byte) for byte in text.encode()]


def test_the_model_is_given_once_and_unloaded_at_the_end(source: ResolvedSource, server: OllamaServer) -> None:
    async def scenario() -> None:
        for _ in range(2):
            async with running(source, context_length=64, max_running=2) as engine:
                assert engine.info.context_length == 64
                assert engine.ready
                assert (await engine.stats()).running == 0

    run(scenario())
    assert server.uploads == 1
    (name,) = server.models
    assert re.fullmatch(r"tuneserve/my-model:[0-9a-f]{12}", name)
    assert server.models[name]["parameters"] == {"num_ctx": 64}
    assert [request["keep_alive"] for request in server.requests] == [-1, 0, -1, 0]


def test_tokens_survive_the_way_through_text(source: ResolvedSource, server: OllamaServer) -> None:
    async def scenario() -> None:
        async with running(source) as engine:
            server.script = [("he", ["he"]), ("!", ["!"]), ("ö", ["\ufffd"]), ("x", ["x"])]
            chunks = await collect(engine, [HE, *encode(" y"), END])
            assert ids(chunks) == [HE, *encode("!öx")]
            assert chunks[-1].finish_reason == "stop"
            request = server.requests[-1]
            assert (request["prompt"], request["raw"], request["truncate"]) == ("he y<|im_end|>", True, False)
            assert request["options"]["temperature"] == 1.0

            limited = await collect(engine, [HE], max_tokens=2, temperature=0, seed=5, top_k=3)
            assert ids(limited) == [HE, *encode("!")]
            assert limited[-1].finish_reason == "length"
            assert (
                server.requests[-1]["options"] | {"num_predict": 2, "seed": 5, "top_k": 3, "temperature": 0}
                == (server.requests[-1]["options"])
            )

            stopped = await collect(engine, [HE], stop_token_ids=tuple(encode("!")))
            assert ids(stopped) == [HE, *encode("!")]
            assert stopped[-1].finish_reason == "stop"

            schema = Grammar(kind="json_schema", text='{"type": "object"}')
            await collect(engine, [HE], grammar=schema)
            assert server.requests[-1]["format"] == {"type": "object"}

            for prompt, reason in (([], "no tokens"), (encode("he"), "not how their text is encoded")):
                with pytest.raises(RequestError, match=reason):
                    await collect(engine, prompt)
            with pytest.raises(RequestError, match="not JSON"):
                await collect(engine, [HE], grammar=Grammar(kind="json_schema", text="{"))

    run(scenario())


def test_log_probabilities_are_told_where_they_are_known(source: ResolvedSource, server: OllamaServer) -> None:
    async def scenario() -> None:
        async with running(source) as engine:
            server.script = [("he", ["he"])]
            (chunk, _) = await collect(engine, [HE], logprobs=3)
            assert chunk.logprobs is not None
            # What no token is called is left out.
            assert chunk.logprobs[0].top == [(HE, -1.0), (*encode("!"), -2.0)]
            assert (chunk.logprobs[0].token_id, chunk.logprobs[0].logprob) == (HE, -0.5)
            server.script = [("ö", ["\ufffd"])]
            with pytest.raises(EngineError, match="ask without log-probabilities"):
                await collect(engine, [HE], logprobs=1)

    run(scenario())


def test_a_bos_that_ollama_puts_there_is_left_out(tmp_path: Path, write_gguf_model: Make, server: OllamaServer) -> None:
    path = write_gguf_model(tmp_path / "bos.gguf", **{"tokenizer.ggml.add_bos_token": True})

    async def scenario() -> None:
        async with running(resolve(path)) as engine:
            await collect(engine, [BOS, HE])
            assert server.requests[-1]["prompt"] == "he"
            with pytest.raises(RequestError, match=r"begin with <\|im_start\|>"):
                await collect(engine, [HE])

    run(scenario())


def test_failures_are_told_and_leaving_ends_the_request(source: ResolvedSource, server: OllamaServer) -> None:
    async def scenario() -> None:
        async with running(source) as engine:
            server.error = "the prompt is longer than the context"
            with pytest.raises(RequestError, match="Ollama refused the request: the prompt is longer"):
                await collect(engine, [HE])
            server.error, server.endless = None, True
            request = GenerationRequest(id="r", prompt_ids=[HE], params=SamplingParams())
            async with aclosing(engine.generate(request)) as stream:
                assert (await anext(stream)).token_ids == encode("a")
            assert await asyncio.to_thread(server.left.wait, 30)
            server.endless = False

    run(scenario())


def test_what_it_cannot_serve_is_named(
    source: ResolvedSource, server: OllamaServer, make_llama: Make, make_lora: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = find_engine("ollama")
    assert kind.check(source, (), ServeOptions()).problems == ()
    base = make_llama()
    found = kind.check(resolve(make_lora(base)), (), ServeOptions())
    assert (found.problems, found.export) == (("it takes a merged model", "it takes a GGUF file"), "ollama:q8_0")
    assert kind.check(source, [NamedAdapter("x", base)], ServeOptions()).export is None
    with pytest.raises(InputError, match="runs already and takes no program"):
        kind.check(source, (), ServeOptions(arguments=("x",)))
    server.version = "0.12.3"
    with pytest.raises(EngineError, match=r"Ollama 0\.12\.3 is older than 0\.12\.11"):
        kind.check(source, (), ServeOptions())
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    with pytest.raises(EngineError, match=r"no Ollama answers at http://127\.0\.0\.1:9; start it with 'ollama serve'"):
        kind.check(source, (), ServeOptions())


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("box:80", "http://box:80"),
        ("https://box/ollama/", "https://box:443/ollama"),
        ("http://box", "http://box:80"),
        ("[::1]:1234", "http://[::1]:1234"),
    ],
)
def test_its_address_is_read_as_ollama_reads_it(given: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert server_url() == url


def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:port")
    with pytest.raises(InputError, match="which is no address"):
        server_url()
