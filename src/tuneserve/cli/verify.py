"""``tuneserve verify``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.parity import ParityReport


def verify(
    candidate: Annotated[str, typer.Argument(help="What to check: a directory, adapter, .gguf or server's URL.")],
    against: Annotated[
        str | None, typer.Option(help="The reference: usually the adapter that was trained; without it, only hashes.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The reference's base, if not the one its adapter names.")] = None,
    method: Annotated[str | None, typer.Option(help="How it was made, if no manifest says so: gguf:q4_k_m.")] = None,
    model: Annotated[str | None, typer.Option(help="With a URL, the model to ask; the first that it lists.")] = None,
    api_key: Annotated[str | None, typer.Option(help="With a URL, its key.", envvar="TUNESERVE_API_KEY")] = None,
    report: Annotated[Path | None, typer.Option(help="A new file for a page: where the two part, and how far.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure how far a model is from the one that was trained; exit code 1 if it is another.

    [dim]tuneserve verify serving_model --against outputs/my-adapter --report parity.html[/dim]

    [dim]tuneserve verify serving_model[/dim]  rechecks the hashes of its files
    """
    from tuneserve.cli._run import print_json

    if against is None:
        _verify_files(candidate, [base, method, model, report], as_json=as_json)
        return
    from tuneserve import parity
    from tuneserve.report import check_new, write_page

    if report is not None:
        check_new(report)
    key = api_key if candidate.startswith(("http://", "https://")) else None
    found = parity.verify(candidate, against, base=base, method=method, model=model, api_key=key)
    if report is not None:
        write_page(report, parity.html_report(found, candidate, against))
    if as_json:
        print_json(found.to_dict())
    else:
        print_parity(found)
    if not found.passed:
        raise typer.Exit(1)


def _verify_files(candidate: str, others: "Sequence[object]", *, as_json: bool) -> None:
    from tuneserve import parity
    from tuneserve.cli._run import output, print_json
    from tuneserve.errors import InputError

    if any(value is not None for value in others):
        raise InputError(
            "--base, --method, --model and --report are for a comparison; name the reference with --against."
        )
    report = parity.verify_files(Path(candidate))
    if as_json:
        print_json(report.to_dict())
    else:
        for file in report.files:
            output.print(f"{file.state:<8}  {file.name}", markup=False, soft_wrap=True)
        verdict = "[green]the files are as they were written[/green]"
        output.print(verdict if report.passed else "[red]not the files that were written[/red]")
    if not report.passed:
        raise typer.Exit(1)


def print_parity(report: "ParityReport") -> None:
    """Print a report as a table with each limit beside what was measured."""
    from rich import box
    from rich.table import Table

    from tuneserve.cli._run import output

    limits, bound = report.thresholds, "≥ " if report.lower_bound else ""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in (f"parity, {report.method}", "measured", "limit"):
        table.add_column(heading)
    table.add_row("mean KL (nats)", f"{bound}{report.mean_kl:.2e}", f"≤ {limits.mean_kl:.2g}")
    table.add_row("p99 KL (nats)", f"{bound}{report.p99_kl:.2e}", f"≤ {limits.p99_kl:.2g}")
    table.add_row("max KL (nats)", f"{bound}{report.max_kl:.2e}", f"≤ {limits.max_kl:.2g}")
    ties = f" ({report.ties} near-ties)" if report.ties else ""
    table.add_row("top-1 agreement", f"{report.agreement:.2%}{ties}", f"≥ {limits.agreement:.0%}")
    if report.perplexity_change is not None:
        change = f"{report.perplexity:.4g}, {report.perplexity_change:+.2%}"
        table.add_row("perplexity, change", change, f"± {limits.perplexity:.0%}")
    if report.modules:
        modules = report.modules
        worst = f"{modules.worst_error:.2f}"
        table.add_row(f"worst of {modules.compared} weights (× format's error)", worst, f"≤ {limits.weight_error:g}")
        if modules.delta_share is not None:
            table.add_row(
                f"share of the delta, {modules.count} modules", f"{modules.delta_share:.2f}", "½ to 1½ in each"
            )
    for check in report.text:
        table.add_row(check.name, check.detail, "same" if check.passed else "[red]differs[/red]")
    output.print(table)
    verdict = "[green]same model[/green]" if report.passed else "[red]not the same model[/red]"
    output.print(f"{verdict} on {report.prompts} prompts, {report.positions} positions")
    for line in (*report.failures, *(f"what broke: {step}" for step in report.diagnosis), *report.notes):
        output.print(f"  {line}", markup=False)
