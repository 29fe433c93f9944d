"""``tuneserve keys``."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make API keys for 'tuneserve serve --api-key-file'.")


@app.callback()
def keys() -> None:
    """Make API keys for ``tuneserve serve --api-key-file``."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who it is for; shown in the log.")],
    file: Annotated[Path, typer.Option(help="The file of keys; made when it is missing.")],
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests that this key may send per minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens, of prompts and answers, per minute.")] = None,
    concurrent: Annotated[int | None, typer.Option(help="Requests that this key may have running at once.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Let this key load and unload adapters.")] = False,
) -> None:
    """Make a key and print it, once: the file keeps only its hash. A running server takes it within a second.

    [dim]tuneserve keys add alice --file keys.toml --requests-per-minute 600[/dim]
    """
    from tuneserve.cli._run import output
    from tuneserve.gateway import Limits, add_key

    limits = Limits(requests_per_minute, tokens_per_minute, concurrent)
    output.print(add_key(file, name, limits, admin=admin), markup=False, soft_wrap=True)
