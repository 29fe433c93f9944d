"""From a source to a running server, for the verbs that serve."""

import asyncio
from collections.abc import Callable

from tuneserve.sources import ResolvedSource


def serve_native(
    source: ResolvedSource,
    *,
    name: str,
    host: str,
    port: int,
    on_ready: Callable[[str], None],
    context: int | None = None,
    max_running: int | None = None,
    dtype: str = "auto",
    drain_seconds: float = 30.0,
    allowed_hosts: tuple[str, ...] = (),
) -> None:
    """Serve ``source`` on the native engine until the process is asked to stop.

    Raises:
        InputError: the port is taken, or the source cannot be served as it is.
        EngineError: the engine died.
    """
    from tuneserve.engines.contract import SamplingParams
    from tuneserve.engines.native import NativeEngine
    from tuneserve.gateway import ServedModel, read_sampling_defaults, serve
    from tuneserve.text import ChatTemplate, Tokenizer, open_chat_template, open_tokenizer

    def open_text() -> tuple[Tokenizer, ChatTemplate | None, SamplingParams]:
        template = open_chat_template(source.tokenizer_dir) or open_chat_template(source.model_dir)
        tokenizer = open_tokenizer(source.tokenizer_dir, source.model_dir)
        return tokenizer, template, read_sampling_defaults(source.model_dir)

    async def build() -> ServedModel:
        # Beside the event loop, which answers /health meanwhile.
        tokenizer, template, defaults = await asyncio.to_thread(open_text)
        engine = await NativeEngine.start(
            source,
            context_length=context,
            max_running=max_running,
            dtype=dtype,
        )
        return ServedModel(name=name, tokenizer=tokenizer, template=template, engine=engine, defaults=defaults)

    serve(build, host=host, port=port, on_ready=on_ready, drain_seconds=drain_seconds, allowed_hosts=allowed_hosts)
