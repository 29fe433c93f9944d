"""``tuneserve export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.artifacts import ExportPlan


def export(
    source: Annotated[
        str, typer.Argument(help="Adapter or model: a directory, org/name@revision, demo, demo:tickets.")
    ],
    out: Annotated[Path, typer.Argument(help="The directory to make; it must not exist yet.")],
    method: Annotated[str, typer.Option(help="How to make it: merged_16bit.")] = "merged_16bit",
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and stop.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Leave out the comparison with the reference.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest (or the plan) as JSON.")] = False,
) -> None:
    """Make what an engine can load, and prove that it is still the model that was trained.

    [dim]tuneserve export outputs/my-adapter serving_model[/dim]
    """
    from tuneserve import artifacts
    from tuneserve.cli._progress import TerminalProgress
    from tuneserve.cli._run import console, print_json
    from tuneserve.cli.verify import print_parity

    if dry_run:
        _print_plan(artifacts.plan_export(source, method=method, base=base), as_json)
        return
    with TerminalProgress(console) as progress:
        result = artifacts.export(source, out, method=method, base=base, verify=not no_verify, progress=progress)
    if as_json:
        print_json(artifacts.read_manifest(result.directory))
        return
    if result.parity:
        print_parity(result.parity)
    console.print(
        f"wrote {result.directory} ({result.plan.weight_bytes / 1e6:,.0f} MB, {result.plan.merged} tensors merged) "
        f"in {result.seconds:.1f} s",
        markup=False,
        soft_wrap=True,
    )


def _print_plan(plan: "ExportPlan", as_json: bool) -> None:
    from tuneserve.cli._run import output, print_json

    tensors = [(shard, tensor) for shard, planned in plan.shards.items() for tensor in planned]
    if as_json:
        print_json(
            {
                "weight_bytes": plan.weight_bytes,
                "merged_tensors": plan.merged,
                "tensors": [
                    {
                        "file": shard,
                        "name": tensor.name,
                        "dtype": tensor.dtype,
                        "shape": tensor.shape,
                        "merged": tensor.name in plan.model.changed,
                    }
                    for shard, tensor in tensors
                ],
                "copies": [str(path) for path in plan.copies],
            }
        )
        return
    for shard, tensor in tensors:
        shape = "×".join(map(str, tensor.shape))
        mark = "merged" if tensor.name in plan.model.changed else ""
        output.print(f"{shard}  {tensor.name}  {tensor.dtype} {shape}  {mark}", markup=False, soft_wrap=True)
    output.print(f"{plan.weight_bytes:,} bytes of weights, {plan.merged} tensors merged")
