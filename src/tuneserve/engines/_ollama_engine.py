"""Ollama's ``/api/generate`` as the engine contract.

Ollama takes text and gives text. A prompt's tokens become the text that is encoded as exactly these tokens, special
ones written out, or the request is refused; Ollama is told to leave it as it is (``raw``), but for the BOS, which it
puts before a text itself where the GGUF file says so. What it generates comes with the text of each token, which names
the token. A character that takes several tokens comes whole and with the last of them alone: it is spelt with tokens of
the vocabulary, and its log-probabilities are not known.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from tuneserve.engines._http import EngineClient
from tuneserve.engines._pieces import Pieces
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, TokenChunk, TokenLogprob
from tuneserve.engines.requests import check_request
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.text import Tokenizer

_GENERATE = "/api/generate"
_LACKS = (
    "min_tokens", "logit_bias", "bad_words", "prompt_logprobs", "grammar:regex", "grammar:choice", "grammar:lark",
)  # fmt: skip
_MOST_LOGPROBS = 20
_WATCH_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is served: ``model`` is its name in Ollama; ``adds_bos`` says that Ollama puts a BOS before each prompt."""

    model: str
    version: str
    context_length: int
    weight_bytes: int
    max_running: int
    adds_bos: bool


class OllamaEngine:
    """A model of a running Ollama; see :class:`~tuneserve.engines.contract.Engine`."""

    def __init__(self, client: EngineClient, facts: Facts, tokenizer: Tokenizer, pieces: Pieces) -> None:
        self._client = client
        self._facts = facts
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._running = 0
        self._ready = True
        self._info = EngineInfo(
            engine="ollama",
            version=facts.version,
            context_length=facts.context_length,
            vocab_size=tokenizer.vocab_size,
            dtype="gguf",
            device="as Ollama decides",
            weight_bytes=facts.weight_bytes,
            max_running=facts.max_running,
            lacks=_LACKS,
        )
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    async def of(cls, client: EngineClient, facts: Facts, tokenizer: Tokenizer, pieces: Pieces) -> "OllamaEngine":
        """Have Ollama load the model, for as long as it is served.

        Raises:
            EngineError: it cannot.
        """
        options = {"num_ctx": facts.context_length}
        await client.json(
            "POST", _GENERATE, {"model": facts.model, "stream": False, "keep_alive": -1, "options": options}
        )
        return cls(client, facts, tokenizer, pieces)

    @property
    def info(self) -> EngineInfo:
        """What is being served."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether Ollama answered when it was last asked."""
        return self._ready

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence; see the contract."""
        check_request(request, self._info)
        prompt = self._text(request.prompt_ids)
        stops = frozenset(request.params.stop_token_ids)
        self._running += 1
        try:
            async with aclosing(self._client.lines(_GENERATE, self._body(request, prompt))) as lines:
                async for line in lines:
                    chunk = self._chunk(line, request)
                    for count, index in enumerate(chunk.token_ids, 1):
                        if index in stops:
                            logprobs = chunk.logprobs[:count] if chunk.logprobs else None
                            yield TokenChunk(token_ids=chunk.token_ids[:count], finish_reason="stop", logprobs=logprobs)
                            return
                    if chunk.token_ids or chunk.finish_reason:
                        yield chunk
                    if chunk.finish_reason is not None:
                        return
        finally:
            self._running -= 1
        # What it does after the same token 30 times, among others.
        raise EngineError("Ollama broke off the answer; send the request again, or see Ollama's log.")

    async def stats(self) -> EngineStats:
        """Return how many sequences were given to Ollama; of its cache it tells nothing."""
        running = min(self._running, self._facts.max_running)
        return EngineStats(running=running, waiting=self._running - running, cache_usage=0.0)

    async def close(self) -> None:
        """Have Ollama unload the model; it keeps the file."""
        self._ready = False
        self._watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watcher
        with contextlib.suppress(EngineError, InputError):
            await self._client.json("POST", _GENERATE, {"model": self._facts.model, "stream": False, "keep_alive": 0})
        await self._client.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                await self._client.json("GET", "/api/version")
                self._ready = True
            except (EngineError, InputError):
                self._ready = False

    def _text(self, ids: list[int]) -> str:
        """Return the text that Ollama encodes as ``ids``.

        Raises:
            RequestError: there is none.
        """
        bos = self._tokenizer.bos_token
        if self._facts.adds_bos:
            if bos is None or ids[0] != self._tokenizer.backend.token_to_id(bos):
                raise RequestError(f"with Ollama this model's prompts begin with {bos or 'a BOS'}; add it.", "prompt")
            ids = ids[1:]
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        if not text or self._tokenizer.encode(text, add_special_tokens=False) != ids:
            raise RequestError(
                "Ollama takes text only, and these tokens are not how their text is encoded; send the text.", "prompt"
            )
        return text

    def _body(self, request: GenerationRequest, prompt: str) -> dict[str, Any]:
        params = request.params
        body: dict[str, Any] = {
            "model": self._facts.model,
            "prompt": prompt,
            "raw": True,
            "think": False,
            "stream": True,
            "truncate": False,
            "shift": False,
            "keep_alive": -1,
            "logprobs": True,
            "top_logprobs": min(_MOST_LOGPROBS, params.logprobs or 0),
            "options": {
                "num_ctx": self._facts.context_length,
                "num_predict": -1 if params.max_tokens is None else params.max_tokens,
                "temperature": params.temperature,
                "top_k": params.top_k,
                "top_p": params.top_p,
                "min_p": params.min_p,
                "typical_p": params.typical_p,
                "repeat_penalty": params.repetition_penalty,
                "repeat_last_n": -1,
                "presence_penalty": params.presence_penalty,
                "frequency_penalty": params.frequency_penalty,
                "seed": -1 if params.seed is None else params.seed % 2**31,
                "stop": [],
            },
        }
        if params.grammar is not None:
            body["format"] = "json" if params.grammar.kind == "json_object" else _schema(params.grammar.text)
        return body

    def _chunk(self, line: Any, request: GenerationRequest) -> TokenChunk:
        try:
            if "error" in line:
                raise EngineError(f"Ollama failed: {str(line['error'])[:500].rstrip('.')}.")
            text = str(line["response"]).encode()
            told = [(_piece(entry), entry) for entry in line.get("logprobs") or ()]
            reason = ("length" if line.get("done_reason") == "length" else "stop") if line["done"] else None
            ids, logprobs = self._tokens(text, told, request)
        except (KeyError, TypeError, ValueError, UnicodeError):
            raise EngineError("Ollama's answer is not understood; update Ollama, and see its log.") from None
        return TokenChunk(token_ids=ids, finish_reason=reason, logprobs=logprobs)  # type: ignore[arg-type]

    def _tokens(
        self, text: bytes, told: list[tuple[bytes, Any]], request: GenerationRequest
    ) -> tuple[list[int], list[TokenLogprob] | None]:
        wanted = request.params.logprobs
        if b"".join(piece for piece, _ in told) == text:
            ids = [self._pieces.first(piece) for piece, _ in told]
            if None not in ids:
                found = [index for index in ids if index is not None]
                if wanted is None:
                    return found, None
                return found, [self._logprob(index, entry) for index, (_, entry) in zip(found, told, strict=True)]
        spelt = self._pieces.spell(text)
        if spelt is None:
            raise EngineError(
                "Ollama gave a text that the model's tokens do not make up; see whether it has this model."
            )
        if wanted is not None and spelt:
            raise EngineError(
                "Ollama does not tell the log-probabilities of every token of this text; ask without log-probabilities."
            )
        return spelt, None

    def _logprob(self, index: int, entry: Any) -> TokenLogprob:
        top = ((self._pieces.only(_piece(each)), float(each["logprob"])) for each in entry.get("top_logprobs") or ())
        return TokenLogprob(
            index, float(entry["logprob"]), [(token, value) for token, value in top if token is not None]
        )


def _piece(entry: Any) -> bytes:
    return bytes(entry["bytes"]) if entry.get("bytes") else str(entry["token"]).encode()


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("the JSON schema is not JSON; correct it.", "grammar") from None
