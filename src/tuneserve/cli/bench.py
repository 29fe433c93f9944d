"""``tuneserve bench``."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.bench import RunResult, Target, Workload


def bench(
    source: Annotated[str, typer.Argument(help="A source, run in this process, or a server's http:// address.")],
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", "--batch", help="Requests at once; several are a sweep. By default 1,16,64."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Instead: requests per second, arriving at random; several are a sweep.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Requests of a run; as many as are at once, or arrive in 10 seconds.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens of each prompt.")] = 32,
    shared_prefix: Annotated[int, typer.Option(help="How many of these are the same in all prompts.")] = 0,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    runs: Annotated[int, typer.Option(help="How often each level is run.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the prompts and arrivals.")] = 0,
    ttft_target: Annotated[
        float | None, typer.Option(help="Milliseconds to the first token that count as good, for goodput.")
    ] = None,
    itl_target: Annotated[
        float | None, typer.Option(help="Milliseconds between tokens that do, on average over an answer.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new file for the results, a line of JSON for each run.")] = None,
    html: Annotated[Path | None, typer.Option(help="A new file for a page of plots.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Results to compare with, from --out; repeatable, all are taken together.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="The server's model, by default the first it lists; several share the requests."),
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH over a source, unmerged; several share the requests.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="The server's key.", envvar="TUNESERVE_API_KEY")] = None,
    run_seconds: Annotated[float, typer.Option(min=1, help="The longest that a server may take for a run.")] = 600.0,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="Of a source: auto, float32, bfloat16 or float16.")] = "auto",
    weights: Annotated[str, typer.Option(help="Of a source: auto, or int8 or int4 on a CPU.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure latency and throughput under load, and what changed since the last time.

    [dim]tuneserve bench http://localhost:8000 --concurrency 1,8,32 --out before.jsonl[/dim]

    [dim]tuneserve bench http://localhost:8000 --rate 1,2,4 --ttft-target 500 --html load.html[/dim]
    """
    from dataclasses import asdict

    import msgspec

    from tuneserve.bench import Workload, compare, html_report, measure, read_results, write_result
    from tuneserve.cli._load_progress import LoadProgress
    from tuneserve.cli._load_tables import print_changes, print_level
    from tuneserve.cli._run import console, print_json
    from tuneserve.report import check_new, write_page

    workload = Workload(
        concurrency=_levels("concurrency", "1,16,64" if concurrency is None else concurrency),
        rates=() if rate is None else _rates(concurrency, rate),
        requests=requests,
        prompt_tokens=prompt_tokens,
        shared_prefix=shared_prefix,
        new_tokens=new_tokens,
        runs=runs,
        seed=seed,
        first_token_target=ttft_target,
        inter_token_target=itl_target,
    )
    workload.check()
    if html is not None:
        check_new(html)
    before = [result for path in against or () for result in read_results(path)]
    results: list[RunResult] = []
    with ExitStack() as stack:
        file = stack.enter_context(_new_file(out)) if out is not None else None
        if source.startswith(("http://", "https://")):
            _refuse("a source", base=base, adapter=adapter)
            target = _server(stack, source, model or (), api_key, run_seconds)
        else:
            _refuse("a server", model=model)
            target = _source(source, base, workload, adapter or (), dtype, weights)
        progress = stack.enter_context(LoadProgress(console, runs))
        for result in measure(target, workload, progress.ran):
            results.append(result)
            if file is not None:
                write_result(file, result)
            if not as_json and len(results) % runs == 0:
                print_level(results[-runs:], first=len(results) == runs)
    changes = compare(before, results) if before else None
    if html is not None:
        write_page(html, html_report(results, before, changes or ()))
    if as_json:
        found = {"results": msgspec.to_builtins(results)}
        print_json(found if changes is None else {**found, "changes": [asdict(change) for change in changes]})
    elif changes is not None:
        print_changes(changes)


def _refuse(whose: str, **given: object) -> None:
    from tuneserve.errors import InputError

    for name, value in given.items():
        if value:
            raise InputError(f"--{name} is for {whose}; leave it out.")


def _levels(name: str, text: str) -> tuple[int, ...]:
    from tuneserve.errors import InputError

    parts = text.split(",")
    if len(parts) > 100 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise InputError(f"--{name} is {text[:60]!r}; give whole numbers, like 1,16,64.")
    return tuple(int(part[:20]) for part in parts)


def _rates(concurrency: str | None, text: str) -> tuple[float, ...]:
    from tuneserve.errors import InputError

    if concurrency is not None:
        raise InputError("--concurrency and --rate are two kinds of load; give one of them.")
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--rate is {text[:60]!r}; give requests per second, like 0.5,1,2.") from None
    if len(rates) > 100:
        raise InputError(f"--rate has {len(rates)} levels; give at most 100.")
    return rates


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file, which goes again if nothing is written to it."""
    from tuneserve.errors import OutputError

    try:
        file = path.open("xb")
    except FileExistsError:
        raise OutputError(f"{path} is there already; name a new file.") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); name another file.") from None
    with file:
        try:
            yield file
        finally:
            if file.tell() == 0:
                path.unlink()


def _server(stack: ExitStack, url: str, models: "Sequence[str]", api_key: str | None, run_seconds: float) -> "Target":
    from tuneserve.bench import ServerTarget
    from tuneserve.client import OpenAIClient

    client = stack.enter_context(OpenAIClient(url, api_key, run_seconds))
    return ServerTarget(client, models, run_seconds=run_seconds)


def _source(
    source: str, base: str | None, workload: "Workload", adapters: "Sequence[str]", dtype: str, weights: str
) -> "Target":
    from tuneserve.bench.source import SourceTarget
    from tuneserve.cli._engine import open_adapters, split_adapters
    from tuneserve.sources import resolve

    found = resolve(source, base=base)
    named = {each.name: each.named.directory for each in open_adapters(split_adapters(adapters), found)}
    return SourceTarget(found, workload, adapters=named, dtype=dtype, weights=weights)
