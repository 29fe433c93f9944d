"""SGLang's native API as the engine contract (``/generate``, sglang/srt/managers/io_struct.py of 0.5.23)."""

import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

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
from tuneserve.engines.kind import NamedAdapter
from tuneserve.engines.requests import check_request
from tuneserve.engines.supervised import SupervisedServer
from tuneserve.errors import EngineError, RequestError
from tuneserve.text import Tokenizer

_LACKS = ("typical_p", "bad_words", "grammar:lark")
_PENALTIES = ("presence_penalty", "frequency_penalty")


class SglangEngine:
    """A running SGLang; see :class:`~tuneserve.engines.contract.Engine`."""

    def __init__(self, server: SupervisedServer, client: EngineClient, info: EngineInfo, ends: frozenset[int]) -> None:
        self._server = server
        self._client = client
        self._info = info
        self._ends = ends

    @classmethod
    async def of(
        cls,
        server: SupervisedServer,
        client: EngineClient,
        version: str,
        adapters: Sequence[NamedAdapter],
        tokenizer: Tokenizer,
        *,
        seeded: bool,
    ) -> "SglangEngine":
        """Ask a server that is ready what it serves.

        Raises:
            EngineError: its answer is not understood.
        """
        found = await client.json("GET", "/server_info")
        try:
            info = EngineInfo(
                engine="sglang",
                version=version,
                # A few tokens less than the context, but it refuses longer prompts.
                context_length=int(found["max_req_input_len"]),
                vocab_size=tokenizer.vocab_size,
                dtype=str(found["dtype"]),
                device=str(found["device"]),
                weight_bytes=round(float(found["internal_states"][0]["memory_usage"]["weight"]) * 2**30),
                max_running=int(found.get("max_running_requests") or 0),
                lacks=_LACKS if seeded else (*_LACKS, "seed"),
                adapters=tuple(adapter.name for adapter in adapters),
            )
        except (KeyError, IndexError, TypeError, ValueError):
            raise EngineError("SGLang's /server_info is not understood; use a version near 0.5.23.") from None
        return cls(server, client, info, tokenizer.end_token_ids)

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
        # Its own end tokens always end a sequence, unless none does: then the stops are looked for here.
        own_stops = self._ends <= set(request.params.stop_token_ids)
        stops = frozenset() if own_stops else frozenset(request.params.stop_token_ids)
        seen, prompt_sent = 0, False
        async with aclosing(self._client.events("/generate", _body(request, own_stops=own_stops))) as events:
            async for event in events:
                try:
                    chunk, seen = _chunk(event, seen, request.params, with_prompt=not prompt_sent)
                except (KeyError, TypeError, ValueError, IndexError):
                    raise EngineError(
                        "SGLang's answer is not understood; use a version near 0.5.23, and see its log."
                    ) from None
                prompt_sent = True
                chunk = _cut(chunk, stops)
                if chunk.token_ids or chunk.finish_reason or chunk.prompt_logprobs:
                    yield chunk
                if chunk.finish_reason is not None:
                    return
        raise EngineError("SGLang ended its answer without saying why; see its log.")

    async def stats(self) -> EngineStats:
        """Return the load right now."""
        gauges = read_gauges(await self._client.text("/metrics"))
        return EngineStats(
            running=int(gauges.get("sglang:num_running_reqs", 0)),
            waiting=int(gauges.get("sglang:num_queue_reqs", 0)),
            cache_usage=min(1.0, gauges.get("sglang:token_usage", 0.0)),
        )

    async def close(self) -> None:
        """Stop it and wait until it is gone."""
        await self._server.close()
        await self._client.close()


def _check(request: GenerationRequest, info: EngineInfo) -> None:
    # Needed: an id beyond its embedding would end its whole process.
    check_request(request, info)
    params = request.params
    for name in _PENALTIES:
        if abs(getattr(params, name)) > 2:
            raise RequestError(f"{name} is outside -2 to 2, which is all that SGLang takes; lower it.", name)
    if params.repetition_penalty > 2:
        raise RequestError("repetition_penalty is above 2, the most that SGLang takes; lower it.", "repetition_penalty")


def _body(request: GenerationRequest, *, own_stops: bool) -> dict[str, Any]:
    params = request.params
    sampling: dict[str, Any] = {
        "max_new_tokens": params.max_tokens,
        "min_new_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "skip_special_tokens": False,
        **({"stop_token_ids": list(params.stop_token_ids)} if own_stops else {"ignore_eos": True}),
        **(
            {"logit_bias": {str(index): bias for index, bias in params.logit_bias.items()}} if params.logit_bias else {}
        ),
        **({"sampling_seed": params.seed % 2**63} if params.seed is not None else {}),
        **(_grammar(params.grammar) if params.grammar else {}),
    }
    body: dict[str, Any] = {
        "rid": request.id,
        "input_ids": request.prompt_ids,
        "sampling_params": sampling,
        "stream": True,
    }
    if params.logprobs is not None or params.prompt_logprobs is not None:
        body |= {
            "return_logprob": True,
            "top_logprobs_num": max(params.logprobs or 0, params.prompt_logprobs or 0),
            "logprob_start_len": 0 if params.prompt_logprobs is not None else -1,
        }
    return body if request.adapter is None else {**body, "lora_path": request.adapter}


def _grammar(grammar: Grammar) -> dict[str, str]:
    match grammar.kind:
        case "json_object":
            return {"json_schema": '{"type": "object"}'}
        case "json_schema":
            return {"json_schema": grammar.text}
        case "regex":
            return {"regex": grammar.text}
        case "choice":
            return {"regex": "|".join(f"({re.escape(choice)})" for choice in json.loads(grammar.text))}
        case "lark":
            raise AssertionError("refused, being among what it lacks")


def _chunk(event: Any, seen: int, params: SamplingParams, *, with_prompt: bool) -> tuple[TokenChunk, int]:
    """Return what is new in an event, and how many tokens there are now."""
    if "error" in event:
        message = str(event["error"]["message"]).rstrip(".")[:500]
        if int(event["error"].get("code") or 400) < 500:
            raise RequestError(f"SGLang refused the request: {message}.")
        raise EngineError(f"SGLang failed: {message}.")
    meta = event["meta_info"]
    total = int(meta["completion_tokens"])
    # The new ones are last, whether it sends all each time or what is new.
    fresh = total - seen
    ids = [int(index) for index in event["output_ids"][-fresh:]] if fresh > 0 else []
    logprobs = prompt_logprobs = None
    if params.logprobs is not None:
        logprobs = _logprobs(
            meta["output_token_logprobs"][-fresh:] if fresh > 0 else [],
            meta.get("output_top_logprobs", [])[-fresh:] if fresh > 0 else [],
            params.logprobs,
        )
    if params.prompt_logprobs is not None and with_prompt:
        prompt_logprobs = _logprobs(
            meta["input_token_logprobs"][1:], meta.get("input_top_logprobs", [])[1:], params.prompt_logprobs
        )
    chunk = TokenChunk(
        token_ids=ids,
        finish_reason=_reason(meta),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        cached_tokens=None if seen else meta.get("cached_tokens"),
    )
    return chunk, max(seen, total)


def _reason(meta: Any) -> FinishReason | None:
    reason = meta.get("finish_reason")
    if reason is None:
        return None
    kind = reason["type"]
    if kind == "abort":
        message = str(reason.get("message") or "it was aborted").rstrip(".")[:500]
        if reason.get("status_code") == 400:
            raise RequestError(f"SGLang refused the request: {message}.")
        raise EngineError(f"SGLang ended the sequence: {message}.")
    if kind not in ("stop", "length"):
        raise ValueError(kind)
    return cast(FinishReason, kind)


def _logprobs(tokens: Any, tops: Any, count: int) -> list[TokenLogprob]:
    """Read its lists of ``[logprob, id, text]``."""
    padded = [*tops, *([None] * (len(tokens) - len(tops)))]
    return [
        TokenLogprob(int(token[1]), float(token[0]), [(int(each[1]), float(each[0])) for each in (top or [])[:count]])
        for token, top in zip(tokens, padded, strict=True)
    ]


def _cut(chunk: TokenChunk, stops: frozenset[int]) -> TokenChunk:
    """End ``chunk`` at the first of ``stops`` in it."""
    for count, index in enumerate(chunk.token_ids, 1):
        if index in stops:
            return TokenChunk(
                token_ids=chunk.token_ids[:count],
                finish_reason="stop",
                logprobs=chunk.logprobs[:count] if chunk.logprobs is not None else None,
                prompt_logprobs=chunk.prompt_logprobs,
                cached_tokens=chunk.cached_tokens,
            )
    return chunk
