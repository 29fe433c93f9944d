"""``tuneserve plan``."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def plan(
    source: Annotated[
        str, typer.Argument(help="Adapter or model: a directory, a .gguf file, org/name@revision, demo, demo:tickets.")
    ],
    objective: Annotated[
        Literal["throughput", "latency", "memory", "simple"], typer.Option(help="What matters most.")
    ] = "throughput",
    hardware: Annotated[
        str, typer.Option(help="auto is this machine; or 2xH100-80GB, rtx4090, cpu, cpu-16c-64GB, mac-m4-64GB.")
    ] = "auto",
    context: Annotated[int | None, typer.Option(help="Tokens per sequence; the model's, up to 8192.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Sequences at once; 16 for throughput, else 1.")] = None,
    adapters: Annotated[int, typer.Option(help="How many adapters over the one base are to be served.")] = 1,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    base_precision: Annotated[
        Literal["16bit", "trained"] | None,
        typer.Option(help="Of a quantised base: its 16-bit original, or what training saw; trained if left out."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="A new file for a page: the memory bars and the steps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say how to serve a model best on some hardware, why, and with which commands; nothing is loaded.

    [dim]tuneserve plan outputs/my-adapter --hardware 2xH100-80GB --concurrency 64[/dim]
    """
    from tuneserve import planner
    from tuneserve.cli._run import output, print_json
    from tuneserve.report import check_new, write_page

    if report is not None:
        check_new(report)
    made = planner.plan(
        source, objective=objective, hardware=hardware, context=context, concurrency=concurrency, adapters=adapters,
        base=base, base_precision=base_precision,
    )  # fmt: skip
    if report is not None:
        write_page(report, planner.html_report(made))
    if as_json:
        print_json(made.to_dict())
    else:
        output.print(planner.explain(made), markup=False, soft_wrap=True)
