"""The routes of chat and plain completions."""

import time

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tuneserve.gateway._answer import Answer
from tuneserve.gateway._body import read_object
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.chat._work import chat_work, completion_work
from tuneserve.gateway.schemas import parse_chat, parse_completion


def add_chat_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add both."""
    settings = gateway.settings

    async def chat(request: Request) -> Response:
        arrived = time.monotonic()
        gateway.admit()
        body = parse_chat(await read_object(request, settings.max_body_bytes), settings.lenient)
        return Answer(await chat_work(gateway, gateway.find(body.model), body, arrived))

    async def completions(request: Request) -> Response:
        arrived = time.monotonic()
        gateway.admit()
        body = parse_completion(await read_object(request, settings.max_body_bytes), settings.lenient)
        return Answer(await completion_work(gateway, gateway.find(body.model), body, arrived))

    app.add_route("/v1/chat/completions", chat, methods=["POST"])
    app.add_route("/v1/completions", completions, methods=["POST"])
