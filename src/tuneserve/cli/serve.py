"""``tuneserve serve``."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    source: Annotated[str, typer.Argument(help="A directory, a .gguf file, org/name@revision, demo or demo:tickets.")],
    name: Annotated[str | None, typer.Option(help="What requests call the model; the source's name.")] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    engine: Annotated[
        str, typer.Option(help="auto, native, vllm, sglang, llama.cpp, ollama or unsloth; see 'tuneserve engines'.")
    ] = "auto",
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH, an adapter over SOURCE that requests choose by name; repeatable."),
    ] = None,
    engine_python: Annotated[
        Path | None, typer.Option(help="A Python that has the engine, instead of the installed environment's.")
    ] = None,
    engine_binary: Annotated[Path | None, typer.Option(help="The engine's program, instead of the one found.")] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="An argument that the engine gets as it is; repeatable.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share the model.")] = 1,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Leave out the comparison of what is served with the source.")
    ] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence; the model's, up to 8192.")] = None,
    max_running: Annotated[int | None, typer.Option(help="Sequences computed together; what fits, up to 64.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="On a loopback address, another host name that requests may use.")
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that running requests may go on once the server is told to stop.")
    ] = 30,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of API keys, one of which each request needs; see 'tuneserve keys'.")
    ] = None,
    max_queue: Annotated[int, typer.Option(min=0, help="Sequences that may wait; requests past it get a 429.")] = 1024,
    max_body_mib: Annotated[int, typer.Option(min=1, max=1024, help="The largest request body in MiB.")] = 8,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A web page's origin that may use the API, * for all; repeatable.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate with its chain (PEM), to serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    log_format: Annotated[str, typer.Option(help="text or json: how each request is logged to stderr.")] = "text",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Put the requests' bodies into the log.")] = False,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Where traces go (OTLP over HTTP); needs 'pip install tuneserve[otel]'.")
    ] = None,
) -> None:
    """Serve a model behind the OpenAI API, with a chat page at /.

    [dim]tuneserve serve outputs/my-adapter --port 8000[/dim]

    [dim]tuneserve serve outputs/my-adapter --engine vllm[/dim]

    [dim]tuneserve serve outputs/my-adapter --host 0.0.0.0 --api-key-file keys.toml --log-format json[/dim]
    """
    from tuneserve.cli._engine import check_program, parse_adapters, prepare
    from tuneserve.cli._operation import operation
    from tuneserve.cli._run import console
    from tuneserve.cli._serving import log_directory, run_server
    from tuneserve.engines.kind import ServeOptions
    from tuneserve.gateway import Settings, listen
    from tuneserve.sources import resolve

    settings = Settings(
        max_body_bytes=max_body_mib << 20,
        api_keys=api_key_file,
        max_queue=max_queue,
        cors_origins=tuple(cors_origin or ()),
        log_prompts=log_prompts,
        otlp_endpoint=otlp_endpoint,
    )
    running = operation(settings, tls_cert, tls_key, log_format, drain_timeout)
    program = check_program(engine, engine_python, engine_binary)
    resolved = resolve(source, base=base)
    called = name or resolved.name
    # Better now than after the work.
    listen(host, port).close()
    served = prepare(
        engine,
        resolved,
        parse_adapters(adapter or (), resolved, called),
        ServeOptions(
            context_length=context,
            max_running=max_running,
            dtype=dtype,
            tensor_parallel=tensor_parallel,
            program=program,
            arguments=tuple(engine_arg or ()),
            logs=log_directory(port),
        ),
        verify=not no_verify,
    )

    def announce(url: str) -> None:
        console.print(
            f"serving {called} at {url} (chat page), {url}/v1 (API); Ctrl-C stops", markup=False, soft_wrap=True
        )

    for note in served.notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"loading {called} with {served.kind.name}", markup=False, soft_wrap=True)
    run_server(
        served,
        name=called,
        host=host,
        port=port,
        on_ready=announce,
        verify=not no_verify,
        operation=running,
        allowed_hosts=tuple(allowed_host or ()),
    )
