"""``/tokenize`` and ``/detokenize``, in vLLM's form."""

from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tuneserve.gateway._body import read_object
from tuneserve.gateway._errors import json_response
from tuneserve.gateway._logprobs import TokenNames
from tuneserve.gateway._prompts import chat_prompt, check_ids
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.chat import offered
from tuneserve.gateway.schemas import DetokenizeRequest, TokenizeTextRequest, parse, parse_tokenize


def add_token_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add both."""
    settings = gateway.settings

    async def tokenize(request: Request) -> Response:
        gateway.admit()
        body = parse_tokenize(await read_object(request, settings.max_body_bytes), settings.lenient)
        served = _find(gateway, body.model)
        if isinstance(body, TokenizeTextRequest):
            text, special = body.prompt, body.add_special_tokens is not False
            encode = partial(served.tokenizer.encode, text, add_special_tokens=special)
            ids = await gateway.workers.run(encode, len(text))
        else:
            tools = offered(served, body.tools)
            ids = (await chat_prompt(served, body, gateway.workers, tools=tools, fits=False)).ids
        names = TokenNames(served.tokenizer, as_ids=False)
        return json_response(
            {
                "count": len(ids),
                "max_model_len": served.context_length,
                "tokens": ids,
                "token_strs": [names.name(token) for token in ids] if body.return_token_strs else None,
            }
        )

    async def detokenize(request: Request) -> Response:
        gateway.admit()
        body = parse(DetokenizeRequest, await read_object(request, settings.max_body_bytes), {}, settings.lenient)
        served = _find(gateway, body.model)
        check_ids(served, body.tokens, "tokens")
        text = await gateway.workers.run(lambda: served.tokenizer.decode(body.tokens, skip_special_tokens=False))
        return json_response({"prompt": text})

    app.add_route("/tokenize", tokenize, methods=["POST"])
    app.add_route("/detokenize", detokenize, methods=["POST"])


def _find(gateway: Gateway, name: str | None) -> ServedModel:
    return gateway.admit() if name is None else gateway.find(name)
