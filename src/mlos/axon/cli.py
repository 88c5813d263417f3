"""The command line ``axon``: it knows the verbs and the exit codes, and nothing of what they do."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from mlos import __version__, console
from mlos.axon.commands import (
    OutputOption,
    ProgressOption,
    install,
    login,
    remove,
    show,
    tune,
    variants,
    verify,
    voice,
)

EXIT_CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 usage, 3 not found, 4 refused (verification, format, policy), "
    "5 parity failed, 6 no room, 7 hub or network, 8 authentication or licence needed, 130 interrupted."
)

app = typer.Typer(
    name="axon", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=EXIT_CODES
)


def _version(wanted: bool) -> None:
    if wanted:
        voice.console().result({"axon": __version__}, lambda: f"axon {__version__}", [__version__])
        raise typer.Exit


@app.callback()
def common(
    output: OutputOption = None,
    progress: ProgressOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Package machine-learning models, each proved against its own framework."""
    voice.choose(output, progress)


app.command("install", epilog=EXIT_CODES)(install.run)
app.command("pull", hidden=True, epilog=EXIT_CODES)(install.run)
app.command("convert", epilog=EXIT_CODES)(variants.convert)
app.command("quantize", epilog=EXIT_CODES)(variants.quantize)
app.command("tune", epilog=EXIT_CODES)(tune.run)
app.command("list", epilog=EXIT_CODES)(show.list_packages)
app.command("info", epilog=EXIT_CODES)(show.info)
app.command("verify", epilog=EXIT_CODES)(verify.run)
app.command("remove", epilog=EXIT_CODES)(remove.remove)
app.command("gc", epilog=EXIT_CODES)(remove.gc)
app.command("login", epilog=EXIT_CODES)(login.login)
app.command("logout", epilog=EXIT_CODES)(login.logout)


def main() -> NoReturn:
    """Run ``axon``."""
    console.run(app, voice.console)
