"""``tuneserve check``."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.client.checks import CheckResult

# A small model on a busy CPU takes its time over 24 tokens.
_SILENT_SECONDS = 180.0
_WORDS = {"pass": "pass", "fail": "FAIL", "unsupported": "not supported", "skipped": "skipped"}
_COUNTED = {"pass": "passed", "fail": "failed", "unsupported": "not supported", "skipped": "skipped"}
_STYLES = {"pass": "green", "fail": "bold red", "unsupported": "yellow", "skipped": "dim"}


def check(
    url: Annotated[str, typer.Argument(help="The server, like http://localhost:8000, with or without /v1.")],
    model: Annotated[str | None, typer.Option(help="The model to ask; the first that the server lists.")] = None,
    api_key: Annotated[str | None, typer.Option(help="The server's key.", envvar="TUNESERVE_API_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Find out, feature by feature, whether a server is OpenAI-compatible; exit code 1 if it is not.

    [dim]tuneserve check http://localhost:8000[/dim]
    """
    from dataclasses import asdict

    from tuneserve.cli._run import print_json
    from tuneserve.client import OpenAIClient
    from tuneserve.client.checks import REACHABLE, run_checks

    results = []
    with OpenAIClient(url, api_key, _SILENT_SECONDS) as client:
        for result in run_checks(client, model):
            results.append(result)
            if not as_json:
                _print_result(result)
    failed = [result.name for result in results if result.outcome == "fail"]
    if as_json:
        print_json({"url": client.url, "passed": not failed, "checks": [asdict(result) for result in results]})
    else:
        _print_summary(results)
    if failed:
        raise typer.Exit(2 if REACHABLE in failed else 1)


def _print_result(result: "CheckResult") -> None:
    from rich.text import Text

    from tuneserve.cli._run import output

    row = Text(f"{_WORDS[result.outcome]:<13}  ", style=_STYLES[result.outcome])
    row.append(f"{result.name:<22}  {result.milliseconds:>6} ms  {result.detail}", style="default")
    output.print(row, soft_wrap=True)


def _print_summary(results: "list[CheckResult]") -> None:
    from tuneserve.cli._run import output

    counts = (f"{sum(result.outcome == outcome for result in results)} {word}" for outcome, word in _COUNTED.items())
    output.print(", ".join(counts))
