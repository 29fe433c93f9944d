"""``tuneserve engines``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tuneserve.engines.overview import Found, Overview

app = typer.Typer(
    invoke_without_command=True,
    help=(
        "List what can serve a model, with versions and what each can do here, or install it.\n\n"
        "[dim]tuneserve engines install llmcompressor[/dim]"
    ),
)
_Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.callback()
def engines(context: typer.Context, as_json: _Json = False) -> None:
    """List the engines, and what exports need of the same kind."""
    if context.invoked_subcommand is not None:
        return
    from tuneserve.cli._run import output, print_json
    from tuneserve.engines.overview import overview

    listed = overview()
    if as_json:
        print_json([_listed(each) for each in listed])
        return
    for each in listed:
        state = f"not installed; {each.install}" if each.found is None else _version(each.found)
        output.print(f"{each.name}  {state}", markup=False, soft_wrap=True)
        output.print(f"  {each.purpose}", markup=False, soft_wrap=True)
        for problem in each.problems:
            output.print(f"  not here: {problem}", markup=False, soft_wrap=True)


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
    from tuneserve.engines.overview import of_environment

    def report(line: str) -> None:
        console.print(line, style="dim", markup=False, soft_wrap=True)

    found = of_environment(environments.install(name, report))
    if as_json:
        print_json(_facts(name, found))
    else:
        output.print(f"{name}  {_version(found)}  {found.python}", markup=False, soft_wrap=True)


def _version(found: "Found") -> str:
    torch = f" (torch {found.versions['torch']})" if found.versions and "torch" in found.versions else ""
    return f"{found.version or 'installed'}{torch}"


def _listed(each: "Overview") -> dict[str, Any]:
    return {
        **_facts(each.name, each.found),
        "purpose": each.purpose,
        "install": each.install,
        "problems": list(each.problems),
    }


def _facts(name: str, found: "Found | None") -> dict[str, Any]:
    """Return an installation; an environment of its own has its Python and the version of each distribution."""
    if found is None:
        return {"name": name, "installed": False}
    facts: dict[str, Any] = {"name": name, "installed": True, "version": found.version}
    if found.python is not None:
        facts |= {"python": str(found.python), "versions": dict(found.versions or {})}
    return facts
