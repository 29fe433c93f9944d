"""``tuneserve serve``."""

from typing import Annotated

import typer


def serve(
    source: Annotated[str, typer.Argument(help="A directory, org/name@revision, demo or demo:tickets.")],
    name: Annotated[str | None, typer.Option(help="What requests call the model; the source's name.")] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence; the model's, up to 8192.")] = None,
    max_running: Annotated[int | None, typer.Option(help="Sequences computed together; what fits, up to 64.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="On a loopback address, another host name that requests may use.")
    ] = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="How long running requests may go on at the end.")] = 30,
) -> None:
    """Serve a model behind the OpenAI API, with a chat page at /.

    [dim]tuneserve serve outputs/my-adapter --port 8000[/dim]
    """
    from tuneserve.cli._run import console
    from tuneserve.cli._serving import serve_native
    from tuneserve.sources import resolve

    resolved = resolve(source, base=base)
    called = name or resolved.name

    def announce(url: str) -> None:
        console.print(
            f"serving {called} at {url} (chat page), {url}/v1 (API); Ctrl-C stops", markup=False, soft_wrap=True
        )

    console.print(f"loading {called}", markup=False, soft_wrap=True)
    serve_native(
        resolved,
        name=called,
        host=host,
        port=port,
        on_ready=announce,
        context=context,
        max_running=max_running,
        dtype=dtype,
        drain_seconds=drain_seconds,
        allowed_hosts=tuple(allowed_host or ()),
    )
