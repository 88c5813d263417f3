"""``axon remove`` and ``axon gc``: take packages away, and give their room back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.text import Text

from mlos.axon.commands import OutputOption, ProgressOption, settings, voice
from mlos.console import OutputFormat
from mlos.errors import UsageError
from mlos.store import Store
from mlos.tune.record import collect_compiled


def remove(
    model: Annotated[str, typer.Argument(help="Short name, repository name, reference, or digest.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and do nothing.")
    ] = False,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Take a package away. Its files go with `axon gc`, when nothing uses them any more."""
    console = voice.choose(output, progress)
    store = Store(settings().store)
    if dry_run or (not yes and sys.stdin.isatty() and console.output is OutputFormat.HUMAN):
        found = store.find(model)
        if dry_run:
            data = {"removed": False, "name": found.name, "reference": found.reference, "digest": found.digest}
            console.result(data, lambda: Text(f"{found.reference} would be removed"), [found.reference])
            return
        if not typer.confirm(f"remove {found.reference}?", err=True):
            raise UsageError("nothing was removed")
        model = found.reference
    gone = store.remove(model)
    data = {"removed": True, "name": gone.name, "reference": gone.reference, "digest": gone.digest}
    console.result(data, lambda: Text(f"{gone.reference} is removed; axon gc frees its room"), [gone.reference])


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be freed, and do nothing.")
    ] = False,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Delete what no package, server or running install needs."""
    console = voice.choose(output, progress)
    with console.step("collect"):
        home, store = settings().home, Store(settings().store)
        freed = store.gc(dry_run=dry_run) + collect_compiled(home, store, dry_run=dry_run)
    verb = "would be freed" if dry_run else "freed"
    console.result(
        asdict(freed) | {"dry_run": dry_run},
        lambda: Text(f"{freed.files} files, {decimal(freed.bytes)} {verb}"),
        [str(freed.bytes)],
    )
