"""Unsloth's own ``FastLanguageModel``, in the environment that has it, as a process that serves it.

Written after the sources of Unsloth 2026.10; it was not run here, for want of a GPU.
"""

import json
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from secrets import token_hex
from typing import Any

from tuneserve.engines import _unsloth_server, environments
from tuneserve.engines._checks import check_dtype, gpu_problems, quantisation
from tuneserve.engines._http import EngineClient
from tuneserve.engines.contract import (
    Engine,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    SamplingParams,
    TokenChunk,
    TokenLogprob,
)
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.engines.requests import check_request
from tuneserve.engines.supervised import Launch, SupervisedServer
from tuneserve.errors import EngineError, InputError
from tuneserve.sources import ResolvedSource, read_config

_MERGED = "merged_16bit"
_DEFAULT_CONTEXT = 8192
_LACKS = ("presence_penalty", "frequency_penalty", "logit_bias", "bad_words", "prompt_logprobs", "grammar")


class Unsloth:
    """Unsloth in an environment of its own."""

    name = "unsloth"

    def check(
        self,
        source: ResolvedSource,
        adapters: Sequence[NamedAdapter],  # noqa: ARG002
        options: ServeOptions,
    ) -> Preflight:
        """Say whether it can serve ``source``; PEFT loads its adapter and ``adapters`` unmerged, of any kind.

        Raises:
            InputError: it does not have an option.
            EngineError: Unsloth is not installed.
        """
        check_dtype(options)
        if options.arguments:
            raise InputError("Unsloth takes no arguments; leave --engine-arg out.")
        if options.max_running not in (None, 1):
            raise InputError("Unsloth computes one sequence at a time; leave --max-running out.")
        environments.require("unsloth", options.program)
        problems, export = gpu_problems(), None
        if options.tensor_parallel != 1:
            problems.append("it runs on one GPU")
        if source.weights_file is not None:
            problems.append("it takes no GGUF file")
            export = _MERGED
        found = quantisation(source)
        if found and found.get("quant_method") != "bitsandbytes":
            problems.append(f"it does not load weights quantised by {str(found.get('quant_method'))[:40]}")
            export = _MERGED
        if gpu_problems() or options.tensor_parallel != 1:
            export = None
        return Preflight(tuple(problems), export, notes=("it computes one sequence at a time",))

    async def start(
        self,
        source: ResolvedSource,
        adapters: Sequence[NamedAdapter],
        options: ServeOptions,
        name: str,  # noqa: ARG002
    ) -> Engine:
        """Start its process and wait until the model is loaded.

        Raises:
            InputError: the context is longer than the model's.
            EngineError: it did not start; the message has its last lines.
        """
        environment = environments.require("unsloth", options.program)
        trained = int(read_config(source.model_dir / "config.json").get("max_position_embeddings") or _DEFAULT_CONTEXT)
        context = options.context_length or min(trained, _DEFAULT_CONTEXT)
        if not 2 <= context <= trained:
            raise InputError(f"a context of {context} tokens was asked for; choose one from 2 to {trained}.")
        config = {
            "model": str(source.model_dir.absolute()),
            "adapter": None if source.adapter_dir is None else str(source.adapter_dir.absolute()),
            "adapters": {adapter.name: str(adapter.directory.absolute()) for adapter in adapters},
            "context": context,
            "dtype": options.dtype,
        }
        key = token_hex(16)
        headers = {"Authorization": f"Bearer {key}"}

        def command(port: int) -> list[str | Path]:
            return [environment.python, _unsloth_server.__file__, str(port), json.dumps(config)]

        server = await SupervisedServer.start(
            Launch(
                engine="Unsloth",
                command=command,
                headers=headers,
                environment={
                    **os.environ,
                    _unsloth_server.KEY: key,
                    "HF_HUB_OFFLINE": "1",
                    "UNSLOTH_DISABLE_STATISTICS": "1",
                },
                log=options.logs / "unsloth.log" if options.logs else None,
            )
        )
        client = EngineClient("Unsloth", server.address, headers)
        try:
            facts = await client.json("GET", "/info")
        except BaseException:
            await client.close()
            await server.close()
            raise
        info = EngineInfo(
            engine="unsloth",
            version=environment.version,
            context_length=context,
            max_running=1,
            lacks=_LACKS,
            adapters=tuple(adapter.name for adapter in adapters),
            **facts,
        )
        return UnslothEngine(server, client, info)


class UnslothEngine:
    """A running Unsloth; see :class:`~tuneserve.engines.contract.Engine`."""

    def __init__(self, server: SupervisedServer, client: EngineClient, info: EngineInfo) -> None:
        self._server = server
        self._client = client
        self._info = info

    @property
    def info(self) -> EngineInfo:
        """What is being served."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._server.ready

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence; see the contract. With log-probabilities it comes whole."""
        check_request(request, self._info)
        async with aclosing(self._client.events("/generate", self._body(request))) as events:
            async for event in events:
                if "error" in event:
                    raise EngineError(f"Unsloth failed: {str(event['error'])[:500].rstrip('.')}.")
                reason = event.get("reason")
                logprobs = [
                    TokenLogprob(index, value, [(token, each) for token, each in top])
                    for index, value, top in event.get("logprobs") or ()
                ]
                if event["token_ids"] or reason:
                    yield TokenChunk(token_ids=event["token_ids"], finish_reason=reason, logprobs=logprobs or None)
                if reason:
                    return
        raise EngineError("Unsloth ended its answer without saying why; see its log.")

    async def stats(self) -> EngineStats:
        """Return the load right now; of its cache it tells nothing."""
        load = await self._client.json("GET", "/load")
        return EngineStats(running=load["running"], waiting=load["waiting"], cache_usage=0.0)

    async def close(self) -> None:
        """Stop it and wait until it is gone."""
        await self._server.close()
        await self._client.close()

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        params = request.params
        left = self._info.context_length - len(request.prompt_ids)
        return {
            "prompt_ids": request.prompt_ids,
            "adapter": request.adapter,
            "seed": params.seed,
            "stop_token_ids": list(params.stop_token_ids),
            "logprobs": params.logprobs,
            "sampling": {
                "max_new_tokens": min(left, params.max_tokens or left),
                "min_new_tokens": params.min_tokens,
                "repetition_penalty": params.repetition_penalty,
                **_choice(params),
            },
        }


def _choice(params: SamplingParams) -> dict[str, Any]:
    """Return how Transformers is to choose the next token."""
    if params.temperature == 0:
        return {"do_sample": False}
    chosen = {
        "do_sample": True,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "typical_p": params.typical_p,
    }
    return chosen | ({"min_p": params.min_p} if params.min_p else {})
