"""``tuneserve bench``."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.bench import Change, RunResult, Target, Workload

_SHARES = ("p50", "p90", "p99")


def bench(
    source: Annotated[str, typer.Argument(help="A source, run in this process, or a server's http:// address.")],
    concurrency: Annotated[
        str, typer.Option("--concurrency", "--batch", help="Requests at once; several, like 1,16,64, are a sweep.")
    ] = "1,16,64",
    requests: Annotated[int | None, typer.Option(help="Requests of a run; as many as are at once.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens of each prompt.")] = 32,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    runs: Annotated[int, typer.Option(help="How often each level is run.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A new file for the results, a line of JSON for each run.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Results to compare with, from --out; repeatable, all are taken together.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The server's model; the first that it lists.")] = None,
    api_key: Annotated[str | None, typer.Option(help="The server's key.", envvar="TUNESERVE_API_KEY")] = None,
    run_seconds: Annotated[float, typer.Option(min=1, help="The longest that a server may take for a run.")] = 600.0,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="Of a source: auto, float32, bfloat16 or float16.")] = "auto",
    weights: Annotated[str, typer.Option(help="Of a source: auto, or int8 or int4 on a CPU.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure latency and throughput under load, and what changed since the last time.

    [dim]tuneserve bench http://localhost:8000 --concurrency 1,8,32 --out before.jsonl[/dim]
    """
    from dataclasses import asdict

    import msgspec

    from tuneserve.bench import Workload, compare, measure, read_results, write_result
    from tuneserve.cli._run import print_json

    workload = Workload(
        concurrency=_levels(concurrency),
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        runs=runs,
        seed=seed,
    )
    workload.check()
    before = [result for path in against or () for result in read_results(path)]
    results: list[RunResult] = []
    with ExitStack() as stack:
        file = stack.enter_context(_new_file(out)) if out is not None else None
        if source.startswith(("http://", "https://")):
            target = _server(stack, source, model, api_key, run_seconds)
        else:
            target = _source(source, base, workload, dtype, weights)
        for result in measure(target, workload):
            results.append(result)
            if file is not None:
                write_result(file, result)
            if not as_json and len(results) % runs == 0:
                _print_level(results[-runs:], first=len(results) == runs)
    changes = compare(before, results) if before else None
    if as_json:
        found = {"results": msgspec.to_builtins(results)}
        print_json(found if changes is None else {**found, "changes": [asdict(change) for change in changes]})
    elif changes is not None:
        _print_changes(changes)


def _levels(text: str) -> tuple[int, ...]:
    from tuneserve.errors import InputError

    parts = text.split(",")
    if len(parts) > 100 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise InputError(f"--concurrency is {text[:60]!r}; give whole numbers, like 1,16,64.")
    return tuple(int(part[:20]) for part in parts)


def _new_file(path: Path) -> IO[bytes]:
    from tuneserve.errors import OutputError

    try:
        return path.open("xb")
    except FileExistsError:
        raise OutputError(f"{path} is there already; name a new file.") from None


def _server(stack: ExitStack, url: str, model: str | None, api_key: str | None, run_seconds: float) -> "Target":
    from tuneserve.bench import ServerTarget
    from tuneserve.client import OpenAIClient

    client = stack.enter_context(OpenAIClient(url, api_key, run_seconds))
    return ServerTarget(client, model, run_seconds=run_seconds)


def _source(source: str, base: str | None, workload: "Workload", dtype: str, weights: str) -> "Target":
    from tuneserve.bench.source import SourceTarget
    from tuneserve.sources import resolve

    return SourceTarget(resolve(source, base=base), workload, dtype=dtype, weights=weights)


def _print_level(results: "Sequence[RunResult]", *, first: bool) -> None:
    from statistics import median

    from tuneserve.cli._run import console, output

    if first:
        output.print(
            f"{'':>11}  {'tok/s':>22}  {'first token, ms':>26}  {'inter-token, ms':>26}  {'end to end, ms':>26}\n"
            f"{'concurrency':>11}  {'median (lowest-highest)':>22} " + f" {'p50':>8} {'p90':>8} {'p99':>8} " * 3,
            soft_wrap=True,
        )
    speeds = [result.tokens_per_second for result in results]
    row = f"{results[0].concurrency:>11}  {median(speeds):>9,.1f} ({min(speeds):,.0f}-{max(speeds):,.0f})".ljust(37)
    for name in ("first_token", "inter_token", "end_to_end"):
        found = [value for result in results if (value := getattr(result, name)) is not None]
        cells = [f"{median(getattr(each, p) for each in found):8,.1f}" if found else " " * 8 for p in _SHARES]
        row += f" {' '.join(cells)} "
    output.print(row, soft_wrap=True)
    if failed := sum(result.failed for result in results):
        error = next(result.error for result in results if result.error)
        console.print(f"{failed} requests failed, the first: {error}", markup=False, soft_wrap=True)


def _print_changes(changes: "Sequence[Change]") -> None:
    from tuneserve.cli._run import output

    output.print(f"\n{'concurrency':>11}  {'':<20}  {'before':>10}  {'now':>10}")
    for change in changes:
        ratio = f"{change.after / change.before - 1:+.1%}" if change.before else ""
        verdict = ("better" if change.better else "worse") if change.beyond_noise else "within noise"
        output.print(
            f"{change.concurrency:>11}  {change.metric:<20}  {change.before:>10,.1f}  {change.after:>10,.1f}  "
            f"{ratio:>7}  {verdict}",
            soft_wrap=True,
        )
