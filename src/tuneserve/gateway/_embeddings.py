"""``/v1/embeddings``: hidden states of the engine, scaled to unit length as OpenAI's are."""

import asyncio
import base64
import struct
from typing import Literal

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tuneserve.engines.contract import Embedder
from tuneserve.gateway._answer import until_disconnect
from tuneserve.gateway._body import read_object
from tuneserve.gateway._errors import ApiError, json_response
from tuneserve.gateway._prompts import token_ids
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.schemas import EmbeddingRequest, parse_embedding

_AT_ONCE = 8


def add_embedding_route(app: FastAPI, gateway: Gateway) -> None:
    """Add it."""
    settings = gateway.settings

    async def embeddings(request: Request) -> Response:
        gateway.admit()
        body = parse_embedding(await read_object(request, settings.max_body_bytes), settings.lenient)
        served = gateway.find(body.model)
        engine = served.engine
        if not isinstance(engine, Embedder):
            message = (
                f"The engine {engine.info.engine} gives no embeddings of the 'model'; serve it with one that does."
            )
            raise ApiError(400, message, param="model", code="unsupported_parameter")
        prompts = await token_ids(served, body.input, gateway.workers, "input", room=0)
        return _Embeddings(served, engine, body, prompts)

    app.add_route("/v1/embeddings", embeddings, methods=["POST"])


class _Embeddings(Response):
    """Computes for as long as the client waits."""

    def __init__(self, served: ServedModel, engine: Embedder, body: EmbeddingRequest, prompts: list[list[int]]) -> None:
        super().__init__()
        self._served = served
        self._engine = engine
        self._pooling: Literal["last", "mean"] = body.pooling or "last"
        self._base64 = body.encoding_format == "base64"
        self._prompts = prompts
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        await until_disconnect(receive, self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._embed(ids)) for ids in self._prompts]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(task.result())}
            for index, task in enumerate(tasks)
        ]
        tokens = sum(map(len, self._prompts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = json_response({"object": "list", "data": data, "model": self._served.name, "usage": usage})
        await answer(scope, receive, send)

    async def _embed(self, ids: list[int]) -> list[float]:
        async with self._free:
            return _unit(await self._engine.embed(ids, self._pooling, self._served.adapter))

    def _encoded(self, vector: list[float]) -> list[float] | str:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if self._base64 else vector


def _unit(vector: list[float]) -> list[float]:
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector] if length else vector
