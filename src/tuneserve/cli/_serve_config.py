"""From what a configuration says to a running server."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from msgspec import UNSET, UnsetType

from tuneserve.cli._config import ModelConfig, ServerConfig
from tuneserve.cli._engine import Served, check_program, open_adapters, prepare
from tuneserve.cli._operation import Operation, operation
from tuneserve.cli._run import console
from tuneserve.cli._serving import log_directory, run_server
from tuneserve.engines.kind import NativeOptions, ServeOptions
from tuneserve.errors import InputError
from tuneserve.gateway import Settings, listen
from tuneserve.sources import ResolvedSource, resolve

_T = TypeVar("_T")


def serve_config(config: ServerConfig) -> None:
    """Serve what ``config`` says until asked to stop.

    Raises:
        InputError: an option cannot be used, two models have one name, or a source cannot be served.
        EngineError: an engine is not installed, or did not start.
        ParityError: what one serves is not the model that was trained.
    """
    running = _operation(config)
    for model in config.model:
        _program(model)
    resolved = [resolve(model.source, base=_given(model.base)) for model in config.model]
    names = [_given(model.name) or source.name for model, source in zip(config.model, resolved, strict=True)]
    _check_distinct((*names, *(adapter for model in config.model for adapter in model.adapters)))
    # Better now than after the work.
    listen(config.host, config.port).close()
    models = {
        name: _prepare(model, source, config.port, place)
        for place, (name, model, source) in enumerate(zip(names, config.model, resolved, strict=True))
    }

    def announce(url: str) -> None:
        console.print(
            f"serving {', '.join(names)} at {url} (chat page), {url}/v1 (API); Ctrl-C stops",
            markup=False, soft_wrap=True,
        )  # fmt: skip

    for name, served in models.items():
        for note in served.notes:
            console.print(note, markup=False, soft_wrap=True)
        console.print(f"loading {name} with {served.kind.name}", markup=False, soft_wrap=True)
    run_server(
        models,
        host=config.host,
        port=config.port,
        on_ready=announce,
        operation=running,
        allowed_hosts=tuple(config.allowed_hosts),
    )


def _operation(config: ServerConfig) -> Operation:
    settings = Settings(
        max_body_bytes=config.max_body_mib << 20,
        api_keys=_given(config.api_key_file),
        max_queue=config.max_queue,
        cors_origins=tuple(config.cors_origins),
        log_prompts=config.log_prompts,
        otlp_endpoint=_given(config.otlp_endpoint),
        lenient=config.lenient,
        adapter_dirs=tuple(config.adapter_dirs),
    )
    return operation(settings, _given(config.tls_cert), _given(config.tls_key), config.log_format, config.drain_timeout)


def _prepare(model: ModelConfig, source: ResolvedSource, port: int, place: int) -> Served:
    options = ServeOptions(
        context_length=_given(model.context),
        max_running=_given(model.max_running),
        dtype=model.dtype,
        tensor_parallel=model.tensor_parallel,
        program=_program(model),
        arguments=tuple(model.engine_args),
        logs=log_directory(port, place),
        native=NativeOptions(
            cache_tokens=_given(model.cache_tokens),
            prefix_cache=model.prefix_cache,
            speculation=model.speculation,
            cpu_step=model.cpu_step,
            weights=model.weights,
        ),
    )
    return prepare(model.engine, source, open_adapters(model.adapters, source), options, verify=model.verify)


def _program(model: ModelConfig) -> Path | None:
    return check_program(model.engine, _given(model.engine_python), _given(model.engine_binary))


def _check_distinct(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"two models would be called {name!r}; choose another name for one of them.")
        seen.add(name)


def _given(value: _T | UnsetType) -> _T | None:
    return None if value is UNSET else value
