"""``tuneserve verify``."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.parity import ParityReport


def verify(
    candidate: Annotated[str, typer.Argument(help="What to check: usually a merged directory.")],
    against: Annotated[str, typer.Option(help="The reference: usually the adapter that was trained.")],
    base: Annotated[str | None, typer.Option(help="The reference's base, if not the one its adapter names.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure how far a model is from the one that was trained; exit code 1 if it is another.

    [dim]tuneserve verify serving_model --against outputs/my-adapter[/dim]
    """
    from tuneserve import parity
    from tuneserve.cli._run import print_json

    report = parity.verify(candidate, against, base=base)
    if as_json:
        print_json(report.to_dict())
    else:
        print_parity(report)
    if not report.passed:
        raise typer.Exit(1)


def print_parity(report: "ParityReport") -> None:
    """Print a report as a table with each threshold beside its measurement."""
    from rich import box
    from rich.table import Table

    from tuneserve.cli._run import output

    limits = report.thresholds
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("parity", "measured", "limit"):
        table.add_column(heading)
    table.add_row("mean KL (nats)", f"{report.mean_kl:.2e}", f"≤ {limits.mean_kl:g}")
    table.add_row("max KL (nats)", f"{report.max_kl:.2e}", f"≤ {limits.max_kl:g}")
    ties = f" ({report.ties} near-ties)" if report.ties else ""
    table.add_row("top-1 agreement", f"{report.agreement:.2%}{ties}", f"≥ {limits.agreement:.0%}")
    if report.modules:
        table.add_row(
            f"worst of {report.modules.count} modules (× rounding error)",
            f"{report.modules.worst_error:.2f}",
            f"≤ {limits.module_error:g}",
        )
    output.print(table)
    verdict = "[green]same model[/green]" if report.passed else "[red]not the same model[/red]"
    output.print(f"{verdict} on {report.prompts} prompts, {report.positions} positions")
    for failure in report.failures:
        output.print(f"  {failure}", markup=False)
