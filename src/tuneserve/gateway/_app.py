"""The application: which path is answered by what."""

import time

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tuneserve.gateway._answer import Answer, Work
from tuneserve.gateway._body import read_object
from tuneserve.gateway._edge import Edge
from tuneserve.gateway._errors import ApiError, quoted
from tuneserve.gateway._generate import Job
from tuneserve.gateway._operate import add_operator_routes
from tuneserve.gateway._page import add_page
from tuneserve.gateway._prompts import chat_max_tokens, chat_prompt, completion_max_tokens, completion_prompts
from tuneserve.gateway._sampling import sampling
from tuneserve.gateway._schema import Generation, parse_chat, parse_completion
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._shapes import ChatShape, CompletionShape, Shape
from tuneserve.gateway._state import Gateway, Settings


def create_app(served: ServedModel, settings: Settings | None = None) -> FastAPI:
    """Return an application that serves one running model; closing its engine is the caller's."""
    gateway = Gateway(settings or Settings())
    gateway.open(served)
    return application(gateway)


def application(gateway: Gateway) -> FastAPI:
    """Return the application over ``gateway``, which may still be starting."""
    # The schema is checked by hand, since a body must be bounded before it is parsed; so there is none to show.
    app = FastAPI(title="tuneserve", openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _http_error)
    add_page(app)
    add_operator_routes(app, gateway)
    _add_generation_routes(app, gateway)
    app.add_middleware(Edge, gateway=gateway, paths=frozenset(getattr(route, "path", "") for route in app.routes))
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = quoted(request.url.path)
    if error.status_code == 405:
        message = f"{request.method} is not allowed on {path}; use {(error.headers or {}).get('Allow', 'another')}."
    else:
        message = f"There is nothing at {path}; the API is under /v1."
    return ApiError(error.status_code, message, code="unknown_url", headers=error.headers).response()


def _add_generation_routes(app: FastAPI, gateway: Gateway) -> None:
    async def chat(request: Request) -> Response:
        arrived = time.monotonic()
        gateway.admit()
        body = parse_chat(await read_object(request, gateway.settings.max_body_bytes))
        served = gateway.find(body.model)
        ids = await chat_prompt(served, body, gateway.workers)
        job = _job(served, body, ids, chat_max_tokens(served, body, len(ids)))
        return _answer(gateway, served, body, [job], ChatShape(served.name), arrived)

    async def completions(request: Request) -> Response:
        arrived = time.monotonic()
        gateway.admit()
        body = parse_completion(await read_object(request, gateway.settings.max_body_bytes))
        served = gateway.find(body.model)
        prompts = await completion_prompts(served, body, gateway.workers)
        jobs = [_job(served, body, ids, completion_max_tokens(served, body, len(ids))) for ids in prompts]
        return _answer(gateway, served, body, jobs, CompletionShape(served.name), arrived)

    app.add_route("/v1/chat/completions", chat, methods=["POST"])
    app.add_route("/v1/completions", completions, methods=["POST"])


def _job(served: ServedModel, body: Generation, prompt_ids: list[int], max_tokens: int) -> Job:
    return Job(prompt_ids, sampling(served, body, max_tokens), tuple(body.stop or ()))


def _answer(
    gateway: Gateway, served: ServedModel, body: Generation, jobs: list[Job], shape: Shape, arrived: float
) -> Answer:
    options = body.stream_options
    work = Work(
        served=served,
        shape=shape,
        jobs=jobs,
        stream=bool(body.stream),
        include_usage=options is not None and bool(options.include_usage),
        metrics=gateway.metrics,
        arrived=arrived,
    )
    return Answer(work)
