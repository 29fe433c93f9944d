"""What clients ask before they generate, and what an operator's tools ask."""

import asyncio
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from tuneserve._version import __version__
from tuneserve.engines.contract import EngineStats
from tuneserve.errors import EngineError
from tuneserve.gateway._errors import json_response
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._state import Gateway, down

_STATS_SECONDS = 2.0


def add_operator_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add the models, health, readiness, version and metrics."""

    async def models(_: Request) -> Response:
        return json_response({"object": "list", "data": [_model(gateway, served) for served in gateway.models()]})

    async def model(request: Request) -> Response:
        return json_response(_model(gateway, gateway.find(request.path_params["name"])))

    async def described(_: Request) -> Response:
        return json_response({"object": "list", "data": [_described(gateway, model) for model in gateway.models()]})

    async def health(_: Request) -> Response:
        status = gateway.status
        return json_response({"status": status}, 503 if status == "failed" else 200)

    async def ready(_: Request) -> Response:
        gateway.admit()
        if gateway.status == "failed":
            raise down()
        return json_response({"status": gateway.status})

    async def version(_: Request) -> Response:
        engines = {each.name: each.engine.info for each in gateway.served}
        return json_response({"name": "tuneserve", "version": __version__, "engines": engines})

    async def metrics(_: Request) -> Response:
        served = gateway.served
        loads = await asyncio.gather(*(_load(each) for each in served))
        content = gateway.metrics.render(
            {each.name: load for each, load in zip(served, loads, strict=True)},
            {each.name: each.engine.ready for each in served},
        )
        return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.add_route("/v1/models", models)
    app.add_route("/v1/models/{name:path}", model)
    app.add_route("/v1/tuneserve/models", described)
    app.add_route("/health", health)
    app.add_route("/ready", ready)
    app.add_route("/version", version)
    app.add_route("/metrics", metrics)


def _model(gateway: Gateway, served: ServedModel) -> dict[str, Any]:
    parent = {} if served.adapter is None else {"parent": gateway.host_of(served).name}
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tuneserve",
        "max_model_len": served.context_length,
        **parent,
    }


def _described(gateway: Gateway, served: ServedModel) -> dict[str, Any]:
    return {
        **_model(gateway, served),
        "ready": served.engine.ready,
        "engine": served.engine.info,
        "lineage": served.lineage,
    }


async def _load(served: ServedModel) -> EngineStats | None:
    try:
        async with asyncio.timeout(_STATS_SECONDS):
            return await served.engine.stats()
    except (EngineError, TimeoutError):
        return None
