"""``tuneserve serve``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneserve.errors import InputError

if TYPE_CHECKING:
    from tuneserve.cli._config import ServerConfig

_FILE = "config_file"
# What the configuration calls an option, where that is not the flag: a list is in the plural.
_KEYS = {
    "adapter": "adapters",
    "engine_arg": "engine_args",
    "allowed_host": "allowed_hosts",
    "cors_origin": "cors_origins",
    "adapter_dir": "adapter_dirs",
    "context_length": "context",
}
_NEGATED = ("verify", "prefix_cache")


def serve(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(help="A directory, a .gguf file, org/name@revision, demo or demo:tickets.")
    ] = None,
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
    context_length: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens per sequence; the model's, up to 8192.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Sequences computed together; what fits, up to 64.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    weights: Annotated[
        str,
        typer.Option(
            help="auto keeps quantised weights in their bits where it can; dequantised; int8 or int4. Native engine."
        ),
    ] = "auto",
    cpu_step: Annotated[str, typer.Option(help="auto, compiled (C++) or eager (PyTorch). Native engine.")] = "auto",
    cache_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that the cache holds; what fits in memory. Native engine.")
    ] = None,
    no_prefix_cache: Annotated[
        bool, typer.Option("--no-prefix-cache", help="Compute equal beginnings of prompts anew. Native engine.")
    ] = False,
    speculation: Annotated[
        int, typer.Option(min=0, max=15, help="Tokens guessed at most from what an answer repeats. Native engine.")
    ] = 0,
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
    adapter_dir: Annotated[
        list[Path] | None, typer.Option(help="Where adapters may be loaded from while the server runs; repeatable.")
    ] = None,
    lenient: Annotated[bool, typer.Option("--lenient", help="Ignore fields that nobody knows.")] = False,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A TOML file of models and options, instead of all others here.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the TOML file that says all this, and serve nothing.")
    ] = False,
) -> None:
    """Serve models behind the OpenAI API, with a page at / to chat, compare and watch.

    [dim]tuneserve serve outputs/my-adapter --port 8000[/dim]

    [dim]tuneserve serve outputs/my-adapter --engine vllm[/dim]

    [dim]tuneserve serve outputs/my-adapter --host 0.0.0.0 --api-key-file keys.toml --log-format json[/dim]

    [dim]tuneserve serve outputs/my-adapter --print-config > serve.toml; tuneserve serve --config serve.toml[/dim]
    """
    from tuneserve.cli._config import read_config, to_toml
    from tuneserve.cli._run import output
    from tuneserve.cli._serve_config import serve_config

    config = _from_flags(context) if config_file is None else read_config(_alone(context, config_file))
    if print_config:
        output.file.write(to_toml(config))
    else:
        serve_config(config)


def _alone(context: typer.Context, file: Path) -> Path:
    """Return the file of the configuration, if nothing is given beside it.

    Raises:
        InputError: something is.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in (_FILE, "print_config") and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[-1]} is given beside --config; say it in {file} instead.")
    return file


def _from_flags(context: typer.Context) -> "ServerConfig":
    """Return the configuration of one model that the flags describe."""
    from tuneserve.cli._config import ModelConfig, to_config
    from tuneserve.cli._engine import split_adapters

    given: dict[str, Any] = {
        _KEYS.get(name, name): value
        for name, value in context.params.items()
        if value is not None and name not in (_FILE, "print_config")
    }
    if "source" not in given:
        raise InputError("there is nothing to serve; name a SOURCE, or a file with --config.")
    for flag in _NEGATED:
        given[flag] = not given.pop(f"no_{flag}")
    given["adapters"] = split_adapters(given.get("adapters", ()))
    model = {name: given.pop(name) for name in ModelConfig.__struct_fields__ if name in given}
    return to_config({**given, "model": [model]})
