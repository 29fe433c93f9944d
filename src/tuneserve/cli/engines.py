"""``tuneserve engines``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tuneserve.engines.environments import Environment

app = typer.Typer(
    invoke_without_command=True,
    help=(
        "List what runs in an environment of its own, with versions, or install it.\n\n"
        "[dim]tuneserve engines install llmcompressor[/dim]"
    ),
)
_Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.callback()
def engines(context: typer.Context, as_json: _Json = False) -> None:
    """List the environments."""
    if context.invoked_subcommand is not None:
        return
    from tuneserve.cli._run import output, print_json
    from tuneserve.engines import environments

    found = {name: environments.find(name) for name in environments.PINNED}
    if as_json:
        print_json([_facts(name, environment) for name, environment in found.items()])
        return
    for name, environment in found.items():
        state = (
            f"not installed; run 'tuneserve engines install {name}'" if environment is None else _versions(environment)
        )
        output.print(f"{name}  {state}", markup=False, soft_wrap=True)
        output.print(f"  for {environments.PINNED[name].purpose}", markup=False, soft_wrap=True)


@app.command()
def install(
    name: Annotated[str, typer.Argument(help="Which one; 'tuneserve engines' lists them.")],
    as_json: _Json = False,
) -> None:
    """Make an environment, unless it is there already; downloads a gigabyte or more.

    [dim]tuneserve engines install llmcompressor[/dim]
    """
    from tuneserve.cli._run import console, output, print_json
    from tuneserve.engines import environments

    def report(line: str) -> None:
        console.print(line, style="dim", markup=False, soft_wrap=True)

    environment = environments.install(name, report)
    if as_json:
        print_json(_facts(name, environment))
    else:
        output.print(f"{name}  {_versions(environment)}  {environment.python}", markup=False, soft_wrap=True)


def _versions(environment: "Environment") -> str:
    torch = f" (torch {environment.versions['torch']})" if "torch" in environment.versions else ""
    return f"{environment.version}{torch}"


def _facts(name: str, environment: "Environment | None") -> dict[str, Any]:
    if environment is None:
        return {"name": name, "installed": False}
    python = str(environment.python)
    return {"name": name, "installed": True, "python": python, "versions": dict(environment.versions)}
