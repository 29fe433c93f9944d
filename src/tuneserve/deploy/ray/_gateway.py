"""The ingress: our gateway over the replicas."""

import asyncio
from pathlib import Path
from typing import Any

from tuneserve.deploy.ray._engine import ReplicatedEngine
from tuneserve.deploy.ray._handles import HandleReplicas
from tuneserve.deploy.ray._options import RayOptions
from tuneserve.deploy.ray._sources import resolve_all
from tuneserve.engines.contract import Engine
from tuneserve.errors import EngineError
from tuneserve.gateway import ServedModel, Settings, create_app, read_sampling_defaults, without_lacking
from tuneserve.sources import ResolvedSource
from tuneserve.text import open_chat_template, open_tokenizer

# Before Serve gives an engine replica up, it tries twice.
_ATTEMPTS = 3


class Gateway:
    """The actor that answers HTTP.

    Raises:
        InputError: the source is not on this machine, or a setting is not usable.
        EngineError: no replica became ready in time.
    """

    async def __init__(self, options: RayOptions, replicas: Any) -> None:  # type: ignore[misc] # Serve awaits it
        settings = Settings(
            api_keys=None if options.api_keys is None else Path(options.api_keys),
            allowed_hosts=frozenset(options.allowed_hosts) or None,
            max_queue=options.max_queue,
        )
        settings.check()
        handles = HandleReplicas(replicas, options)
        try:
            async with asyncio.timeout(_ATTEMPTS * options.start_seconds):
                info = await handles.info()
        except TimeoutError:
            raise EngineError("no engine replica became ready; 'serve status' says why.") from None
        engine = ReplicatedEngine(handles, info)
        self._app = create_app(await asyncio.to_thread(serve_model, options, engine), settings)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application, which Serve runs."""
        return self._app


def serve_model(options: RayOptions, engine: Engine) -> ServedModel:
    """Return the model of ``engine`` with the texts of the source, and those of its adapters.

    Raises:
        InputError: they are not usable.
    """
    source, adapters = resolve_all(options)
    name = options.name or source.name
    of_adapters = tuple(_model(adapter, engine, called, called) for called, adapter in adapters.items())
    return _model(source, engine, name, None, of_adapters)


def _model(
    source: ResolvedSource, engine: Engine, name: str, adapter: str | None, adapters: tuple[ServedModel, ...] = ()
) -> ServedModel:
    return ServedModel(
        name=name,
        tokenizer=open_tokenizer(source.tokenizer_dir, source.model_dir),
        template=open_chat_template(source.tokenizer_dir, source.model_dir),
        engine=engine,
        defaults=without_lacking(read_sampling_defaults(source.model_dir), engine.info.lacks),
        adapter=adapter,
        adapters=adapters,
    )
