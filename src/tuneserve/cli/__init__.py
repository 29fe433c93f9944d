"""The command line: one module per verb, each importing what it needs only when it runs."""

import typer

from tuneserve._version import __version__
from tuneserve.cli import engines, keys
from tuneserve.cli._run import output, run
from tuneserve.cli.bench import bench
from tuneserve.cli.chat import chat
from tuneserve.cli.check import check
from tuneserve.cli.demo import demo
from tuneserve.cli.deploy import deploy
from tuneserve.cli.export import export
from tuneserve.cli.generate import generate
from tuneserve.cli.inspect import inspect
from tuneserve.cli.plan import plan
from tuneserve.cli.serve import serve
from tuneserve.cli.verify import verify

app = typer.Typer(
    name="tuneserve",
    help="Take a fine-tuned language model to production inference, proved to still be the model that was trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, inspect, plan, export, verify, serve, generate, chat, check, bench, deploy):
    app.command()(verb)
app.add_typer(engines.app, name="engines")
app.add_typer(keys.app, name="keys")


def _show_version(asked: bool) -> None:
    if asked:
        output.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with its code."""
    # By whatever name it was started, so that completions and help say the same.
    run(lambda: app(prog_name="tuneserve"))
