"""``tuneserve deploy``."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def deploy(
    source: Annotated[
        str, typer.Argument(help="Adapter or model: a directory, a .gguf file, org/name@revision, demo, demo:tickets.")
    ],
    out: Annotated[Path, typer.Argument(help="The directory to write; it must not exist, or be empty.")],
    target: Annotated[str, typer.Option(help="compose, kubernetes, ray or systemd.")],
    api_key_file: Annotated[Path, typer.Option(help="The file of API keys, one of which each request needs.")],
    name: Annotated[
        str | None, typer.Option(help="What the deployment is called; made from the source's name.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="What it runs on, as for 'tuneserve plan'; a cluster's has to be said.")
    ] = None,
    objective: Annotated[
        Literal["throughput", "latency", "memory", "simple"], typer.Option(help="What matters most.")
    ] = "throughput",
    context: Annotated[int | None, typer.Option(help="Tokens per sequence; the model's, up to 8192.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Sequences at once; 16 for throughput, else 1.")] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH, an adapter over SOURCE that requests choose; repeatable.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="What the registry calls the image: registry/name:tag.")] = None,
    volume: Annotated[
        str | None, typer.Option(help="The PersistentVolumeClaim that holds the model; Kubernetes only.")
    ] = None,
    model_image: Annotated[
        str | None, typer.Option(help="An image that has the model below /models; Kubernetes only.")
    ] = None,
    nodes: Annotated[
        Path | None, typer.Option(help="Output of 'kubectl get nodes -o json', to check the cluster's GPUs.")
    ] = None,
    drain_timeout: Annotated[
        int, typer.Option(min=0, help="Seconds that running requests may go on once a server is told to stop.")
    ] = 30,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Leave out the comparison that each server makes when it starts.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files instead of writing them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Write the files that run a model with Docker Compose, on Kubernetes, on Ray or with systemd, made from its plan.

    [dim]tuneserve deploy serving_model deployment --target compose --api-key-file keys.toml[/dim]

    [dim]tuneserve deploy serving_model deployment --target kubernetes --hardware 4xH100-80GB --api-key-file keys.toml
    --image registry.example/tuneserve:1 --volume models[/dim]
    """
    from tuneserve import deploy, planner
    from tuneserve.cli._engine import open_adapters, split_adapters
    from tuneserve.cli._run import console, output, print_json
    from tuneserve.errors import InputError
    from tuneserve.sources import resolve

    chosen = deploy.find_target(target)
    if hardware is None and not chosen.LOCAL:
        raise InputError(f"{target} runs elsewhere; describe one of its machines with --hardware, e.g. 2xH100-80GB.")
    resolved = resolve(source, base=base)
    adapters = open_adapters(split_adapters(adapter or ()), resolved)
    plan = planner.plan(
        resolved, objective=objective, hardware=hardware or "auto", context=context, concurrency=concurrency,
        adapters=max(1, len(adapters)),
    )  # fmt: skip
    deployment = deploy.make_deployment(
        plan, key_file=api_key_file, name=name, adapters={each.name: each.source for each in adapters},
        drain_seconds=drain_timeout, verify=not no_verify, image=image, volume=volume,
        model_image=model_image, nodes=nodes,
    )  # fmt: skip
    files = chosen.render(deployment)
    if not dry_run:
        deploy.write(files, out)
    if as_json:
        shown = dict(files) if dry_run else list(files)
        print_json({"target": target, "name": deployment.name, "plan": plan.to_dict()["choice"], "files": shown})
    elif dry_run:
        for path, text in files.items():
            output.print(f"--- {path}\n{text}", markup=False, soft_wrap=True)
    else:
        console.print(f"{len(files)} files in {out}; {out / 'README.md'} says how to start it", markup=False)
