"""``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, in vLLM's form."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tuneserve.engines.contract import AdapterHost
from tuneserve.errors import InputError
from tuneserve.gateway._body import read_object
from tuneserve.gateway._errors import ApiError, quoted
from tuneserve.gateway._record import current
from tuneserve.gateway._served import ServedModel, Step
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.schemas import LoadAdapterRequest, UnloadAdapterRequest, parse
from tuneserve.text import open_chat_template


def add_adapter_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add both."""
    settings = gateway.settings
    # One at a time, so that each sees what the one before it has done.
    turn = asyncio.Lock()

    async def load(request: Request) -> Response:
        gateway.admit()
        body = parse(LoadAdapterRequest, await read_object(request, settings.max_body_bytes), {}, settings.lenient)
        host = _host(gateway, _base(gateway, body.base_model_name))
        path = await asyncio.to_thread(_allowed, settings.adapter_dirs, body.lora_path)
        async with turn:
            served = _base(gateway, body.base_model_name)
            if body.lora_name in _names(gateway.models()):
                message = f"There is a model {body.lora_name!r} already; unload it, or choose another 'lora_name'."
                raise ApiError(400, message, param="lora_name", code="invalid_value")
            try:
                adapter = await asyncio.to_thread(_model, served, body.lora_name, path)
                await host.load_adapter(body.lora_name, path)
            except InputError as error:
                raise ApiError(400, str(error), param="lora_path", code="invalid_value") from None
            gateway.change(replace(served, adapters=(*served.adapters, adapter)))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(request: Request) -> Response:
        gateway.admit()
        body = parse(UnloadAdapterRequest, await read_object(request, settings.max_body_bytes), {}, settings.lenient)
        _check_allowed(gateway)
        async with turn:
            served = next((each for each in gateway.served if body.lora_name in _names(each.adapters)), None)
            if served is None:
                message = f"There is no adapter {quoted(body.lora_name)} here; /v1/models lists them."
                raise ApiError(404, message, param="lora_name", code="model_not_found")
            host = _host(gateway, served)
            # First, so that no request finds a model that is about to go.
            others = tuple(model for model in served.adapters if model.name != body.lora_name)
            gateway.change(replace(served, adapters=others))
            try:
                await host.unload_adapter(body.lora_name)
            except InputError as error:
                raise ApiError(400, str(error), param="lora_name", code="invalid_value") from None
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    app.add_route("/v1/load_lora_adapter", load, methods=["POST"])
    app.add_route("/v1/unload_lora_adapter", unload, methods=["POST"])


def _names(models: Iterable[ServedModel]) -> set[str]:
    return {model.name for model in models}


def _base(gateway: Gateway, name: str | None) -> ServedModel:
    """Return the model called ``name``, or the only one there is."""
    gateway.admit()
    if name is None and len(gateway.served) == 1:
        return gateway.served[0]
    for served in gateway.served:
        if served.name == name:
            return served
    names = ", ".join(repr(served.name) for served in gateway.served)
    message = f"'base_model_name' has to be one of {names}; name the model that the adapter is over."
    raise ApiError(400, message, param="base_model_name", code="invalid_value")


def _check_allowed(gateway: Gateway) -> None:
    record = current.get()
    if gateway.callers is not None and not (record is not None and record.key is not None and record.key.admin):
        message = "The API key may not change what is served; use one that has 'admin = true' in the file of keys."
        raise ApiError(403, message, code="admin_required")
    if not gateway.settings.adapter_dirs:
        message = "This server was started without a directory of adapters; start it with --adapter-dir DIR."
        raise ApiError(403, message, code="adapters_not_allowed")


def _host(gateway: Gateway, served: ServedModel) -> AdapterHost:
    _check_allowed(gateway)
    engine = served.engine
    if not isinstance(engine, AdapterHost):
        message = f"The engine {engine.info.engine} takes no adapters while it serves; name them with --adapter."
        raise ApiError(400, message, param="lora_name", code="unsupported_parameter")
    return engine


def _allowed(directories: tuple[Path, ...], given: str) -> Path:
    """Return the directory that ``given`` names, whatever links it takes, if it is within an allowed one.

    Raises:
        ApiError: it is not, or there is none; which of the two is not told.
    """
    for directory in directories:
        try:
            root = directory.resolve(strict=True)
            path = (root / given).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            continue
        if path.is_relative_to(root) and path.is_dir():
            return path
    message = f"{quoted(given)} is no directory of adapters that this server may load; see its --adapter-dir."
    raise ApiError(400, message, param="lora_path", code="invalid_value")


def _model(served: ServedModel, name: str, path: Path) -> ServedModel:
    template = open_chat_template(path)
    if template is None:
        template = served.template
    elif not template.special_tokens:
        # A template alone is used with the base's tokenizer.
        named = {"bos_token": served.tokenizer.bos_token, "eos_token": served.tokenizer.eos_token}
        template = replace(template, special_tokens={name: text for name, text in named.items() if text})
    *steps, engine = served.lineage or (Step(kind="engine", name=served.engine.info.engine),)
    lineage = (*steps, Step(kind="adapter", name=name), replace(engine, parity=None))
    return replace(
        served, name=name, template=template, adapter=name, adapters=(), created=int(time.time()), lineage=lineage
    )
