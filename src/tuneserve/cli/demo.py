"""``tuneserve demo``."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.sources import ResolvedSource

_NAME = "tickets"
_SOURCE = "demo:tickets"
_BASE = "base"
_UNMERGED = "tickets-unmerged"
# The base is described by its manifest, which has the hash of what it was made from.
_INPUTS = ("adapter_config.json", "adapter_model.safetensors", "tuneserve.json")
_MESSAGE = "My parcel A48213 has not arrived and the party is tomorrow!"


def demo(
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """See the whole story on a small model: merge its adapter, verify, serve, chat, compare with its base.

    [dim]tuneserve demo --port 8123[/dim]
    """
    from tuneserve.cli._engine import open_adapters, prepare
    from tuneserve.cli._run import output
    from tuneserve.cli._serving import run_server
    from tuneserve.engines.kind import ServeOptions
    from tuneserve.gateway import listen
    from tuneserve.sources import resolve

    # Better now than after the work.
    listen("127.0.0.1", port).close()
    merged, base = resolve(_artifact()), resolve("demo")
    adapters = open_adapters({_UNMERGED: str(resolve(_SOURCE).adapter_dir)}, base)
    run_server(
        # What is served was verified when it was merged.
        {
            _NAME: prepare("native", merged, (), ServeOptions(), verify=False),
            _BASE: prepare("native", base, adapters, ServeOptions(), verify=False),
        },
        host="127.0.0.1",
        port=port,
        on_ready=lambda url: output.print(_banner(url), markup=False, soft_wrap=True),
    )


def _artifact() -> Path:
    """Return the merged and verified model, made at the first run and kept in the cache."""
    from tuneserve import artifacts
    from tuneserve.cli._progress import TerminalProgress
    from tuneserve.cli._run import console
    from tuneserve.cli.verify import print_parity
    from tuneserve.sources import cache_directory, resolve

    console.print("getting the base model (98 MB at the first run)")
    source = resolve(_SOURCE)
    directory = cache_directory() / "demo" / f"{_NAME}-{_fingerprint(source)}"
    if directory.is_dir():
        console.print(f"reusing the merged and verified model in {directory}", markup=False, soft_wrap=True)
        return directory
    with TerminalProgress(console) as progress:
        result = artifacts.export(source, directory, progress=progress)
    for report in result.parity.values():
        print_parity(report)
    return directory


def _fingerprint(source: "ResolvedSource") -> str:
    """Return a short name for what the artifact is made from and by."""
    from tuneserve._version import __version__

    digest = hashlib.sha256(__version__.encode())
    for directory in (source.adapter_dir, source.model_dir):
        assert directory is not None
        for name in _INPUTS:
            if (directory / name).is_file():
                digest.update((directory / name).read_bytes())
    return digest.hexdigest()[:12]


def _banner(url: str) -> str:
    return f"""
the tuned model answers at {url}, and so do its base and the adapter over it, to compare them on the page at
the same address; Ctrl-C stops

curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{_NAME}", "temperature": 0, "messages": [{{"role": "user", "content": "{_MESSAGE}"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="unused")
answer = client.chat.completions.create(
    model="{_NAME}", temperature=0, messages=[{{"role": "user", "content": "{_MESSAGE}"}}]
)
print(answer.choices[0].message.content)
"""
