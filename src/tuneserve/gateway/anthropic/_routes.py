"""The routes of Anthropic's API."""

import time

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tuneserve.gateway._answer import Answer
from tuneserve.gateway._body import read_object
from tuneserve.gateway._errors import json_response
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.anthropic._schema import parse_count, parse_messages
from tuneserve.gateway.anthropic._shape import MessageShape
from tuneserve.gateway.anthropic._translate import as_chat, renamed
from tuneserve.gateway.chat import conversation_prompt, conversation_work, offered, renaming


def add_message_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add both."""
    settings = gateway.settings

    async def messages(request: Request) -> Response:
        arrived = time.monotonic()
        gateway.admit()
        body = parse_messages(await read_object(request, settings.max_body_bytes), settings.lenient)
        served = gateway.find(body.model)
        chat = as_chat(body)
        shape = MessageShape(served.name)
        return Answer(await conversation_work(gateway, served, chat, shape, arrived, renamed(body)))

    async def count(request: Request) -> Response:
        gateway.admit()
        body = parse_count(await read_object(request, settings.max_body_bytes), settings.lenient)
        served = gateway.find(body.model)
        chat = as_chat(body)
        with renaming(renamed(body)):
            tools = offered(served, chat.offered_tools)
            prompt = await conversation_prompt(gateway, served, chat, tools, fits=False)
        return json_response({"input_tokens": len(prompt.ids)})

    app.add_route("/v1/messages", messages, methods=["POST"])
    app.add_route("/v1/messages/count_tokens", count, methods=["POST"])
