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
    method: Annotated[
        list[str] | None,
        typer.Option(help="What to make; repeat it for several in one pass. merged_16bit if left out."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16 or float16 for the merged weights; the base's own if left out.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest safetensors file.")] = "5GB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed export into OUT was.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Leave out the comparison with the reference.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifests (or the plan) as JSON.")] = False,
) -> None:
    """Make what an engine can load, and prove that it is still the model that was trained.

    [dim]tuneserve export outputs/my-adapter serving_model --method merged_16bit --method gguf:q4_k_m[/dim]
    """
    from tuneserve import artifacts
    from tuneserve.cli._progress import TerminalProgress
    from tuneserve.cli._run import console, print_json
    from tuneserve.cli.verify import print_parity

    methods = method or ["merged_16bit"]
    shard_bytes = artifacts.parse_size(max_shard_size)
    if dry_run:
        plan = artifacts.plan_export(source, method=methods, base=base, dtype=dtype, max_shard_bytes=shard_bytes)
        _print_plan(plan, as_json)
        return
    with TerminalProgress(console) as progress:
        result = artifacts.export(
            source,
            out,
            method=methods,
            base=base,
            dtype=dtype,
            max_shard_bytes=shard_bytes,
            resume=resume,
            verify=not no_verify,
            progress=progress,
        )
    plan = result.plan
    if as_json:
        print_json({name: artifacts.read_manifest(plan.directory(result.directory, name)) for name in plan.formats})
        return
    for report in result.parity.values():
        print_parity(report)
    for name, nbytes in plan.output_bytes.items():
        console.print(
            f"wrote {plan.directory(result.directory, name)} ({name}, {nbytes / 1e6:,.0f} MB)",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"{len(plan.model.changed)} tensors merged, {result.seconds:.1f} s")


def _print_plan(plan: "ExportPlan", as_json: bool) -> None:
    from tuneserve.cli._run import output, print_json

    if as_json:
        print_json(plan.to_dict())
        return
    for spec in plan.model.tensors.values():
        shape = "×".join(map(str, spec.shape))
        mark = "merged" if spec.name in plan.model.changed else ""
        output.print(f"{spec.name}  {spec.dtype} {shape}  {mark}", markup=False, soft_wrap=True)
    for method, format_ in plan.formats.items():
        for name, planned in format_.files.items():
            output.print(f"{method}  {name}  {planned.size:,} bytes", markup=False, soft_wrap=True)
    output.print(f"{sum(plan.output_bytes.values()):,} bytes of weight files, {len(plan.model.changed)} tensors merged")
