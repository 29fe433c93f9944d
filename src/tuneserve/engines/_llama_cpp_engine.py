"""A running llama-server behind the engine contract."""

import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tuneserve.engines._http import EngineClient
from tuneserve.engines._llama_cpp_pieces import Pieces
from tuneserve.engines._llama_cpp_request import Grammars, request_body
from tuneserve.engines.contract import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenChunk,
    TokenLogprob,
)
from tuneserve.engines.requests import check_request
from tuneserve.engines.supervised import SupervisedServer
from tuneserve.errors import EngineError, RequestError

_DEFERRED = re.compile(r"^llamacpp:requests_deferred (\d+)", re.MULTILINE)
_BAD_REQUEST = 400
_FORCED = 1e9
_PROBED = 1000
_NONSENSE = "llama.cpp sent an answer that cannot be read; check its version and its log."


@dataclass(frozen=True)
class _Piece:
    """New tokens, or the end: ``ended`` by one of the model's own end tokens, or by a limit.

    ``cached`` tokens of what was asked were found in the cache, None where it does not say.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    ended: str | None = None
    cached: int | None = None


class LlamaCppEngine:
    """See :class:`~tuneserve.engines.contract.Engine`.

    A sequence can take several requests to the server: llama.cpp always stops at what it takes for an end token, and
    has no minimum of tokens. Each continues where the one before it ended, which its prompt cache makes cheap.
    """

    def __init__(
        self, server: SupervisedServer, client: EngineClient, info: EngineInfo, pieces: Pieces, grammars: Grammars
    ) -> None:
        self._server = server
        self._client = client
        self._info = info
        self._pieces = pieces
        self._grammars = grammars

    @property
    def info(self) -> EngineInfo:
        """What is being served."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether the server lives and takes requests."""
        return self._server.ready

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence; see the contract."""
        self._check(request)
        params = request.params
        room = self._info.context_length - len(request.prompt_ids)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        tokens: list[int] = []
        while True:
            held = len(tokens) < params.min_tokens
            count = min(limit, params.min_tokens if held else limit) - len(tokens)
            before = len(tokens)
            async with aclosing(self._segment(request, tokens, count, held=held)) as pieces:
                async for piece in pieces:
                    new = piece.token_ids[: limit - len(tokens)]
                    stop = next((place for place, token in enumerate(new, 1) if token in params.stop_token_ids), None)
                    new = new[:stop]
                    tokens += new
                    reason: FinishReason | None = "stop" if stop else "length" if len(tokens) == limit else None
                    if piece.ended and params.grammar is not None:
                        reason = "stop" if piece.ended == "eos" else "length"
                    if new or reason:
                        logprobs = None if piece.logprobs is None else piece.logprobs[: len(new)]
                        cached = piece.cached if len(tokens) == len(new) else None
                        yield TokenChunk(token_ids=new, finish_reason=reason, logprobs=logprobs, cached_tokens=cached)
                    if reason:
                        return
            if len(tokens) == before:
                raise EngineError(_NONSENSE)

    async def stats(self) -> EngineStats:
        """Ask for the load right now."""
        slots = await self._client.json("GET", "/slots")
        metrics = await self._client.text("/metrics")
        deferred = _DEFERRED.search(metrics)
        if deferred is None:
            raise EngineError(_NONSENSE)
        with _reading():
            running = [slot for slot in slots if slot["is_processing"]]
            held = sum(slot.get("n_prompt_tokens", 0) for slot in running)
        return EngineStats(
            running=len(running),
            waiting=int(deferred[1]),
            cache_usage=min(1.0, held / (self._info.context_length * self._info.max_running)),
        )

    async def close(self) -> None:
        """Stop the server and wait until it is gone."""
        await self._client.close()
        await self._server.close()

    def _check(self, request: GenerationRequest) -> None:
        check_request(request, self._info)
        params = request.params
        if params.grammar is not None and params.min_tokens:
            raise RequestError("llama.cpp has no min_tokens within a grammar; leave one of them out.", "min_tokens")

    async def _segment(
        self, request: GenerationRequest, tokens: Sequence[int], count: int, *, held: bool
    ) -> AsyncGenerator[_Piece, None]:
        """Ask once for up to ``count`` tokens after ``tokens``."""
        sent = list(tokens)
        body = self._body(request, sent, count, held=held)
        seen = 0
        async with aclosing(self._client.events("/completion", body)) as events:
            async for event in events:
                total, last, ended = _read_event(event)
                cached = _cached(event)
                hidden = total - seen - (last is not None)
                ids = [] if last is None else [last]
                if hidden and last is not None:
                    told = self._pieces.split(_text(event), hidden + 1, last)
                    hidden, ids = (0, told) if told else (hidden + 1, [])
                if hidden:
                    if request.params.grammar is None:
                        yield replace(await self._drawn(request, sent, hidden, held=held), cached=cached)
                    elif ended:
                        # Drawing these again would begin the grammar anew.
                        yield _Piece([], ended=ended)
                    else:
                        raise EngineError(_NONSENSE)
                    return
                if ids:
                    yield _Piece(ids, await self._logprobs(request, sent, ids, event), cached=cached)
                seen = total
                sent += ids
                if ended:
                    yield _Piece([], ended=ended)
                    return
        raise EngineError(_NONSENSE)

    async def _drawn(self, request: GenerationRequest, tokens: list[int], count: int, *, held: bool) -> _Piece:
        """Draw tokens whose ids the stream does not tell, a character that a limit cut or no text at all, once more."""
        body = self._body(request, tokens, count, held=held) | {"stream": False}
        answer = await self._client.json("POST", "/completion", body)
        _, ids = _counted(answer)
        return _Piece(ids, await self._logprobs(request, tokens, ids, {}))

    async def _logprobs(
        self, request: GenerationRequest, tokens: list[int], ids: list[int], event: Mapping[str, Any]
    ) -> list[TokenLogprob] | None:
        """Return those of ``ids`` behind ``tokens``; ``event`` can only have the last one's."""
        wanted = request.params.logprobs
        if wanted is None:
            return None
        given = event.get("completion_probabilities")
        known = len(ids) - 1 if given else len(ids)
        found = [
            await self._probed(request, tokens + ids[:place], token, wanted) for place, token in enumerate(ids[:known])
        ]
        if given:
            with _reading():
                found.append(_logprob(ids[-1], given[-1]["logprob"], given[-1]["top_logprobs"], wanted))
        return found

    async def _probed(self, request: GenerationRequest, tokens: list[int], token: int, wanted: int) -> TokenLogprob:
        """Ask for the log-probability of a token that has no event, by sampling another in its place."""
        for count in (_PROBED, self._info.vocab_size):
            body = self._body(request, tokens, 1, held=False) | {
                "stream": False,
                "temperature": 0,
                "samplers": ["temperature"],
                "logit_bias": [[self._pieces.whole, _FORCED]],
                "n_probs": count,
                "grammar": None,
            }
            answer = await self._client.json("POST", "/completion", body)
            with _reading():
                top = answer["completion_probabilities"][0]["top_logprobs"]
                for entry in top:
                    if entry["id"] == token:
                        return _logprob(token, entry["logprob"], top, wanted)
        raise EngineError(_NONSENSE)

    def _body(self, request: GenerationRequest, tokens: list[int], count: int, *, held: bool) -> dict[str, Any]:
        return request_body(
            request,
            tokens,
            count,
            held=held,
            context_length=self._info.context_length,
            adapters=self._info.adapters,
            grammars=self._grammars,
        )


def _read_event(event: Any) -> tuple[int, int | None, str | None]:
    """Return how many tokens there are by now, the id of the newest where it is told, and what ended them."""
    if isinstance(event, dict) and isinstance(error := event.get("error"), dict):
        message = str(error.get("message")).rstrip(".")
        if error.get("code") == _BAD_REQUEST:
            raise RequestError(f"llama.cpp refused the request: {message}.")
        raise EngineError(f"llama.cpp could not go on ({message}); try again.")
    total, ids = _counted(event)
    return total, ids[-1] if ids else None, event.get("stop_type") if event.get("stop") else None


@contextmanager
def _reading() -> Iterator[None]:
    """Take what is not as it should be in an answer for an error of the engine's."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise EngineError(_NONSENSE) from None


def _counted(event: Any) -> tuple[int, list[int]]:
    with _reading():
        total, ids = event["tokens_predicted"], event["tokens"]
    if type(total) is not int or not isinstance(ids, list) or any(type(token) is not int for token in ids):
        raise EngineError(_NONSENSE)
    return total, ids


def _cached(event: Mapping[str, Any]) -> int | None:
    with _reading():
        found = event.get("timings", {}).get("cache_n")
        return None if found is None else int(found)


def _text(event: Mapping[str, Any]) -> bytes:
    """Return what an event adds to the text."""
    given = event.get("completion_probabilities")
    with _reading():
        return bytes(given[-1]["bytes"]) if given else event["content"].encode(errors="replace")


def _logprob(token: int, logprob: float, top: Sequence[Mapping[str, Any]], count: int) -> TokenLogprob:
    return TokenLogprob(token, logprob, [(entry["id"], entry["logprob"]) for entry in top[:count]])
