"""``tuneserve export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tuneserve.artifacts import ExportPlan


def export(
    source: Annotated[
        str, typer.Argument(help="Adapter or model: a directory, a .gguf file, org/name@revision, demo, demo:tickets.")
    ],
    out: Annotated[Path, typer.Argument(help="The directory to make; it must not exist yet.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="What to make; repeat it for several in one pass. merged_16bit if left out."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    base_precision: Annotated[
        Literal["16bit", "trained"] | None,
        typer.Option(help="Of a quantised base: its 16-bit original, or what training saw; trained if left out."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="PATH=WEIGHT, a further adapter to merge; repeatable.", metavar="PATH=WEIGHT"),
    ] = None,
    weight: Annotated[float, typer.Option(help="The factor of SOURCE's own delta.")] = 1.0,
    combination: Annotated[
        Literal["cat", "linear", "svd"] | None,
        typer.Option(help="How several adapters become one, as in PEFT; cat if left out."),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16"] | None,
        typer.Option(help="Of the merged weights; a 16-bit base's own if left out, else bfloat16."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest safetensors file.")] = "5GB",
    imatrix_from: Annotated[
        Path | None, typer.Option(help="Text of yours that says which weights matter, for gguf types.")
    ] = None,
    calibrate_with: Annotated[
        Path | None, typer.Option(help="Text of yours (.txt, .jsonl) for awq, gptq, fp8_static and nvfp4.")
    ] = None,
    engine_python: Annotated[
        Path | None, typer.Option(help="A Python with llmcompressor, instead of the installed environment's.")
    ] = None,
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
    from tuneserve.adapters import Combination
    from tuneserve.cli._progress import TerminalProgress
    from tuneserve.cli._run import console, print_json
    from tuneserve.cli.verify import print_parity

    options = {
        "method": method or ["merged_16bit"],
        "base": base,
        "base_precision": base_precision,
        "weight": weight,
        "more_adapters": _weighted_once(adapter or []),
        "combination": Combination(combination) if combination else None,
        "dtype": dtype,
        "max_shard_bytes": artifacts.parse_size(max_shard_size),
        "imatrix_from": imatrix_from,
        "calibrate_with": calibrate_with,
        "engine_python": engine_python,
    }
    if dry_run:
        _print_plan(artifacts.plan_export(source, **options), as_json)  # type: ignore[arg-type]
        return
    with TerminalProgress(console) as progress:
        result = artifacts.export(source, out, resume=resume, verify=not no_verify, progress=progress, **options)
    plan = result.plan
    if as_json:
        print_json({name: artifacts.read_manifest(plan.directory(result.directory, name)) for name in plan.methods})
        return
    for report in result.parity.values():
        print_parity(report)
    for name in plan.methods:
        where = plan.directory(result.directory, name)
        nbytes = sum(path.stat().st_size for path in where.iterdir() if path.is_file())
        console.print(f"wrote {where} ({name}, {nbytes / 1e6:,.0f} MB)", markup=False, soft_wrap=True)
    console.print(f"{len(plan.model.changed)} tensors merged, {result.seconds:.1f} s")


def _weighted_once(given: list[str]) -> dict[str, float]:
    from tuneserve.errors import InputError

    found: dict[str, float] = {}
    for path, weight in map(_weighted, given):
        if path in found:
            raise InputError(f"--adapter {path[:200]!r} is given twice; give it once, with the sum of its weights.")
        found[path] = weight
    return found


def _weighted(text: str) -> tuple[str, float]:
    from tuneserve.errors import InputError

    path, _, weight = text.rpartition("=")
    try:
        return (path, float(weight)) if path else (text, 1.0)
    except ValueError:
        raise InputError(f"--adapter {text[:200]!r} does not end in a weight; write it as PATH=0.5.") from None


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
