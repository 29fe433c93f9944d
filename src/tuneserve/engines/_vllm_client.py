"""vLLM's ``/v1/completions`` as the engine contract: token ids in both directions (vllm/entrypoints/openai/completion).

``/inference/v1/generate`` has the same, but has to be switched on, streams no log-probabilities of a prompt, and drops
the last of the likeliest tokens.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from tuneserve.engines._http import EngineClient
from tuneserve.engines._metrics import read_gauges
from tuneserve.engines.contract import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
    TokenChunk,
    TokenLogprob,
)
from tuneserve.engines.requests import check_request
from tuneserve.engines.supervised import SupervisedServer
from tuneserve.errors import EngineError, RequestError

# It takes bad words as text, which it tokenises in its own way.
LACKS = ("bad_words", "typical_p")
# Below, vLLM raises a temperature to this without an error.
_LEAST_TEMPERATURE = 0.01
_TOKEN = "token_id:"  # noqa: S105
_NOT_UNDERSTOOD = "vLLM's answer is not understood; use a version near 0.32, and see its log."


class VllmEngine:
    """A running vLLM; see :class:`~tuneserve.engines.contract.Engine`. ``name`` is what it calls the model."""

    def __init__(self, server: SupervisedServer, client: EngineClient, info: EngineInfo, name: str) -> None:
        self._server = server
        self._client = client
        self._info = info
        self._name = name

    @property
    def info(self) -> EngineInfo:
        """What is being served."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._server.ready

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence; see the contract."""
        _check(request, self._info)
        echoed = len(request.prompt_ids) if request.params.prompt_logprobs is not None else 0
        body = request_body(request, self._info.context_length, self._name)
        last: TokenChunk | None = None
        async with aclosing(self._client.events("/v1/completions", body)) as events:
            async for event in events:
                if last is not None:
                    last = msgspec.structs.replace(last, cached_tokens=read_cached_tokens(event))
                    break
                try:
                    chunk = read_chunk(event, request.params, echoed)
                except (KeyError, TypeError, ValueError, IndexError):
                    raise EngineError(_NOT_UNDERSTOOD) from None
                echoed = 0
                if chunk.finish_reason is not None:
                    # What it found in its cache comes after all else.
                    last = chunk
                elif chunk.token_ids or chunk.prompt_logprobs:
                    yield chunk
        if last is None:
            raise EngineError("vLLM ended its answer without saying why; see its log.")
        yield last

    async def stats(self) -> EngineStats:
        """Return the load right now."""
        gauges = read_gauges(await self._client.text("/metrics"))
        return EngineStats(
            running=int(gauges.get("vllm:num_requests_running", 0)),
            waiting=int(gauges.get("vllm:num_requests_waiting", 0)),
            cache_usage=min(1.0, gauges.get("vllm:kv_cache_usage_perc", 0.0)),
        )

    async def close(self) -> None:
        """Stop it and wait until it is gone."""
        await self._server.close()
        await self._client.close()


async def read_context_length(client: EngineClient) -> int:
    """Return the context length of the model being served.

    Raises:
        EngineError: the answer is not understood.
    """
    found = await client.json("GET", "/v1/models")
    try:
        return int(found["data"][0]["max_model_len"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise EngineError(_NOT_UNDERSTOOD) from None


def _check(request: GenerationRequest, info: EngineInfo) -> None:
    check_request(request, info)
    temperature = request.params.temperature
    if 0 < temperature < _LEAST_TEMPERATURE:
        raise RequestError(
            f"temperature is {temperature:g}, and vLLM takes none between 0 and {_LEAST_TEMPERATURE:g}; "
            "use 0 for greedy.",
            "temperature",
        )


def request_body(request: GenerationRequest, context_length: int, name: str) -> dict[str, Any]:
    """Return what vLLM is asked. All is said, so that no default of the server or the model comes in."""
    params = request.params
    room = context_length - len(request.prompt_ids)
    body: dict[str, Any] = {
        "model": request.adapter or name,
        "request_id": request.id,
        "prompt": request.prompt_ids,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": min(params.max_tokens or room, room),
        "min_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        # The model's own end tokens are among the stops already, unless they are not wanted.
        "ignore_eos": True,
        "stop_token_ids": list(params.stop_token_ids),
    }
    if params.logit_bias:
        body["logit_bias"] = {str(index): bias for index, bias in params.logit_bias.items()}
    if params.seed is not None:
        # It takes 64 bits with a sign, of which -1 means none.
        body["seed"] = params.seed % 2**63
    if params.logprobs is not None or params.prompt_logprobs is not None:
        body["logprobs"] = max(params.logprobs or 0, params.prompt_logprobs or 0)
        body["return_tokens_as_token_ids"] = True
        # While streaming, the only way to those of the prompt.
        body["echo"] = params.prompt_logprobs is not None
    if params.grammar is not None:
        body["structured_outputs"] = _grammar(params.grammar)
    return body


def _grammar(grammar: Grammar) -> dict[str, Any]:
    match grammar.kind:
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            return {"json": grammar.text}
        case "regex":
            return {"regex": grammar.text}
        case "choice":
            return {"choice": json.loads(grammar.text)}
        case "lark":
            # The command line chose llguidance, whose own form this is.
            return {"grammar": grammar.text}


def read_chunk(event: Any, params: SamplingParams, echoed: int) -> TokenChunk:
    """Read one event; in the first, log-probabilities of ``echoed`` prompt tokens come before those of new ones.

    Raises:
        RequestError: it says that the request is at fault.
        EngineError: it says that vLLM failed.
        KeyError, TypeError, ValueError, IndexError: it is not understood.
    """
    if "error" in event:
        error = event["error"]
        message = " ".join(str(error["message"]).split()).rstrip(".")[:500]
        if error.get("code") == 400:
            param = error.get("param")
            raise RequestError(f"vLLM refused the request: {message}.", param if isinstance(param, str) else None)
        raise EngineError(f"vLLM failed: {message}.")
    choice = event["choices"][0]
    ids = [int(index) for index in choice["token_ids"]]
    given = choice.get("logprobs")
    logprobs = prompt_logprobs = None
    if params.prompt_logprobs is not None and echoed:
        prompt_logprobs = _logprobs(given, range(1, echoed), params.prompt_logprobs)
    if params.logprobs is not None:
        logprobs = _logprobs(given, range(echoed, echoed + len(ids)), params.logprobs)
    return TokenChunk(
        token_ids=ids,
        finish_reason=_reason(choice["finish_reason"]),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def read_cached_tokens(event: Any) -> int | None:
    """Read how many tokens of the prompt were in the cache from the event that counts tokens, None if it does not."""
    match event:
        case {"usage": {"prompt_tokens_details": {"cached_tokens": int(found)}}}:
            return found
    return None


def _reason(reason: Any) -> FinishReason | None:
    match reason:
        case None | "stop" | "length":
            found: FinishReason | None = reason
            return found
        case "abort":
            raise EngineError("vLLM ended the sequence early; see its log.")
    raise ValueError(reason)


def _logprobs(given: Any, places: range, count: int) -> list[TokenLogprob]:
    """Read OpenAI's parallel lists; each dict of the likeliest has the token itself too, wherever it stands."""
    found = []
    for place in places:
        top = [(_token_id(token), float(logprob)) for token, logprob in given["top_logprobs"][place].items()]
        top.sort(key=lambda each: -each[1])
        found.append(
            TokenLogprob(_token_id(given["tokens"][place]), float(given["token_logprobs"][place]), top[:count])
        )
    return found


def _token_id(text: str) -> int:
    if not text.startswith(_TOKEN):
        raise ValueError(text)
    return int(text.removeprefix(_TOKEN))
