"""The verbs of ``axon``, one file each, and what they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from mlos.console import Console, OutputFormat, ProgressMode
from mlos.errors import UsageError
from mlos.settings import Settings
from mlos.store import Package

OutputOption = Annotated[
    OutputFormat | None, typer.Option("--output", "-o", help="How results are written to stdout.")
]
ProgressOption = Annotated[
    ProgressMode | None, typer.Option("--progress", help="How progress is written to stderr.")
]


class Voice:
    """The console that the flags choose; those behind the verb count more than those before it."""

    def __init__(self) -> None:
        self._output = OutputFormat.HUMAN
        self._progress = ProgressMode.AUTO

    def choose(self, output: OutputFormat | None, progress: ProgressMode | None) -> Console:
        """Take what was given, and return the console for it."""
        self._output = output or self._output
        self._progress = progress or self._progress
        return self.console()

    def console(self) -> Console:
        """The console as chosen so far."""
        return Console(self._output, self._progress)


voice = Voice()


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values for a person, one to a line; long values are folded, never cut."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def short_reference(package: Package) -> str:
    """A package's reference with the first twelve characters of its commit; what names a variant stays."""
    commit = package.manifest.commit
    body, _, form = package.reference.rpartition(f"@{commit}")
    return f"{body}@{commit[:12]}{form}"


def settings() -> Settings:
    """The settings of this call.

    Raises:
        UsageError: naming the setting that is wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"setting {name}: {first['msg']}",
            field=name,
            got=repr(first["input"]),
            hint=f"correct MLOS_{name.upper()}",
        ) from error
