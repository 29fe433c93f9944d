"""From what is to be served to a running server, for the verbs that serve."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tuneserve.cli._engine import Served
from tuneserve.cli._lineage import adapter_lineage, lineage
from tuneserve.cli._operation import Operation
from tuneserve.sources import ResolvedSource, cache_directory

if TYPE_CHECKING:
    from tuneserve.engines.contract import Engine, SamplingParams
    from tuneserve.engines.probes import Verdict
    from tuneserve.gateway import ServedModel, Step
    from tuneserve.text import ChatTemplate, Tokenizer

    _Text = tuple[Tokenizer, ChatTemplate | None, SamplingParams]


def run_server(
    models: Mapping[str, Served],
    *,
    host: str,
    port: int,
    on_ready: Callable[[str], None],
    operation: Operation | None = None,
    allowed_hosts: tuple[str, ...] = (),
) -> None:
    """Start an engine per model, check that each serves the model that was trained, and serve until asked to stop.

    They start one after the other, so that each sees how much memory is left. ``models`` are by the names that requests
    give.

    Raises:
        InputError: the port is taken, or a source cannot be served as it is.
        EngineError: the engine did not start.
        ParityError: what it serves is not the model that was trained.
    """
    from tuneserve.gateway import serve

    async def build() -> "list[ServedModel]":
        started: list[ServedModel] = []
        try:
            for name, served in models.items():
                started.append(await start(name, served))
        except BaseException:
            await asyncio.gather(*(model.engine.close() for model in started))
            raise
        return started

    operation = operation or Operation()
    with operation.logging():
        serve(
            build, host=host, port=port, on_ready=on_ready, settings=operation.settings, tls=operation.tls,
            drain_seconds=operation.drain_seconds, allowed_hosts=allowed_hosts,
        )  # fmt: skip


async def start(name: str, served: Served) -> "ServedModel":
    """Start the engine of one model and check that it serves the model that was trained.

    Raises:
        InputError: the source cannot be served as it is.
        EngineError: the engine did not start.
        ParityError: what it serves is not the model that was trained.
    """
    sources = (served.source, *(adapter.source for adapter in served.adapters))
    # Beside the event loop, which answers /health meanwhile.
    first, *others = await asyncio.gather(*(asyncio.to_thread(_open_text, source) for source in sources))
    engine = await served.kind.start(
        served.artifact, [adapter.named for adapter in served.adapters], served.options, name
    )
    try:
        verdict, *verdicts = await _verify(engine, served)
    except BaseException:
        await engine.close()
        raise
    adapters = tuple(
        _model(text, engine, each.name, adapter_lineage(served, each.source, engine.info, of_it), each.name)
        for text, each, of_it in zip(others, served.adapters, verdicts, strict=True)
    )
    return _model(first, engine, name, lineage(served, engine.info, verdict), None, adapters)


def log_directory(port: int, place: int) -> Path:
    """Return where the engine of a server's model is to log; another server or place never has the same."""
    server = str(port) if port else f"process-{os.getpid()}"
    return cache_directory() / "logs" / (server if place == 0 else f"{server}-{place + 1}")


def _open_text(source: ResolvedSource) -> "_Text":
    from tuneserve.gateway import read_sampling_defaults
    from tuneserve.text import open_chat_template, open_tokenizer

    template = open_chat_template(source.tokenizer_dir, source.model_dir)
    tokenizer = open_tokenizer(source.tokenizer_dir, source.model_dir)
    return tokenizer, template, read_sampling_defaults(source.model_dir)


def _model(
    text: "_Text",
    engine: "Engine",
    name: str,
    steps: "tuple[Step, ...]",
    adapter: str | None,
    adapters: "tuple[ServedModel, ...]" = (),
) -> "ServedModel":
    from tuneserve.gateway import ServedModel, without_lacking

    tokenizer, template, defaults = text
    return ServedModel(
        name=name,
        tokenizer=tokenizer,
        template=template,
        engine=engine,
        defaults=without_lacking(defaults, engine.info.lacks),
        adapter=adapter,
        adapters=adapters,
        lineage=steps,
    )


async def _verify(engine: "Engine", served: Served) -> "list[Verdict | None]":
    """Compare the model and each of its adapters with their sources; None is what was not compared."""
    from tuneserve.cli._run import console
    from tuneserve.engines.probes import verify_engine

    checks = [(served.source, served.method, None), *((each.source, "lora", each.name) for each in served.adapters)]
    if not served.verify:
        return [None] * len(checks)
    if "logprobs" in engine.info.lacks:
        console.print(
            f"parity with the source was not checked: {engine.info.engine} gives no log-probabilities",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        return [None] * len(checks)
    verdicts: list[Verdict | None] = []
    for source, method, adapter in checks:
        verdict = await verify_engine(engine, source, _method(served, method), adapter)
        verdicts.append(verdict)
        console.print(
            f"{adapter or source.name} is the model that was trained: KL at least {verdict.mean_kl:.1e} nats, "
            f"top-1 agreement {verdict.agreement:.0%} on {verdict.prompts} prompts, {verdict.positions} positions",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    return verdicts


def _method(served: Served, method: str | None) -> str | None:
    """Return how what is served is stored: an adapter's base may be in fewer bits than its own weights."""
    return served.method if method == "lora" and served.method is not None else method
