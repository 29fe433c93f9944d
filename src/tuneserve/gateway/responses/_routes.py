"""The routes of responses."""

import hashlib
import time
from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tuneserve.gateway._answer import Answer
from tuneserve.gateway._body import read_object
from tuneserve.gateway._errors import ApiError, json_response, quoted
from tuneserve.gateway._parts import Sample
from tuneserve.gateway._shapes import Json
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.chat import conversation_work
from tuneserve.gateway.responses._schema import parse_response
from tuneserve.gateway.responses._shape import ResponseShape
from tuneserve.gateway.responses._store import ResponseStore, Stored
from tuneserve.gateway.responses._translate import RENAMED, answered, as_chat, as_messages
from tuneserve.gateway.schemas import Message


def add_response_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add creating, reading and deleting responses."""
    settings = gateway.settings
    store = ResponseStore()

    def keep(messages: list[Message], owner: bytes, response: Json, sample: Sample) -> None:
        store.put(Stored(response, (*messages, answered(sample)), owner))

    async def create(request: Request) -> Response:
        arrived = time.monotonic()
        gateway.admit()
        body = parse_response(await read_object(request, settings.max_body_bytes), settings.lenient)
        served = gateway.find(body.model)
        owner = _owner(request)
        messages = as_messages(body)
        if body.previous_response_id is not None:
            before = store.get(body.previous_response_id, owner, "previous_response_id")
            messages = [*before.messages, *messages]
        chat = as_chat(body, messages)
        keeping = partial(keep, messages, owner) if body.store is not False else _forget
        shape = ResponseShape(served, body, keeping)
        return Answer(await conversation_work(gateway, served, chat, shape, arrived, RENAMED))

    async def read(request: Request) -> Response:
        for name in request.query_params:
            message = f"The query parameter {quoted(name)} is not supported; leave it out."
            raise ApiError(400, message, param=name, code="unsupported_parameter")
        return json_response(store.get(request.path_params["id"], _owner(request)).response)

    async def delete(request: Request) -> Response:
        name = request.path_params["id"]
        store.delete(name, _owner(request))
        return json_response({"id": name, "object": "response", "deleted": True})

    app.add_route("/v1/responses", create, methods=["POST"])
    app.add_route("/v1/responses/{id}", read, methods=["GET"])
    app.add_route("/v1/responses/{id}", delete, methods=["DELETE"])


def _forget(response: Json, sample: Sample) -> None:
    pass


def _owner(request: Request) -> bytes:
    """Return whose responses a request may see: those of who sends the same key."""
    key = request.headers.get("authorization") or request.headers.get("x-api-key") or ""
    return hashlib.sha256(key.encode()).digest()
