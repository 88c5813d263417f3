"""``mlos``: validate models, and draw the report of what was found."""

from __future__ import annotations

import random
import shlex
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn, cast, get_args

import typer

from mlos import __version__, console
from mlos.catalogue import catalogue
from mlos.console import Console, OutputFormat, ProgressMode
from mlos.errors import MlosError, ParityError, RefusedError, UsageError
from mlos.host import environment
from mlos.settings import Settings
from mlos.validation import intervals, results, runner, table
from mlos.validation import report as reporting
from mlos.validation.journal import Journal
from mlos.validation.plan import PlannedModel, WeightsChoice, plan
from mlos.validation.rows import Terms
from mlos.validation.tiers import LENGTHS, claims_numbers

app = typer.Typer(
    help="Prove that models work: packaged, served and checked against their own framework.",
    epilog="Exit status: 0 all passed, 1 a gate failed, 2 usage, 3 not found, 5 parity failed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_console = Console()

_RAW = {
    "latency": {"samples_ms", "server_ms", "cases", "repeated"},
    "generation": {"first_ms", "total_ms", "prompt_tokens", "completion_tokens", "cases", "repeated"},
}
"""What is long and for programs: it is in the result file, not on stdout."""

Output = Annotated[OutputFormat, typer.Option("--output", help="How results are written to stdout.")]
Progress = Annotated[ProgressMode, typer.Option("--progress", help="How progress is written to stderr.")]


def main() -> NoReturn:
    """The program ``mlos``."""
    # Ended by SIGTERM like by Ctrl-C: the server is stopped, and what was found is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.run(app, lambda: _console)


def _speak(output: OutputFormat, progress: ProgressMode) -> Console:
    global _console
    _console = Console(output, progress)
    return _console


@app.command()
def validate(
    models: Annotated[str, typer.Option(help="Short names of the catalogue, with commas between.")] = "",
    model: Annotated[list[str] | None, typer.Option(help="A full reference; repeatable.")] = None,
    set_name: Annotated[
        str, typer.Option("--set", help="The models: default, all, or another set of the catalogue.")
    ] = "default",
    weights: Annotated[
        str, typer.Option(help="auto, hub, seeded, trained, or small: the small variants.")
    ] = "auto",
    tier: Annotated[str, typer.Option(help="How long is measured: smoke, release or record.")] = "smoke",
    seed: Annotated[int | None, typer.Option(help="Seed of the load; drawn if absent.")] = None,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the results.")] = Path("results"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the models installed; else those installed by this run go.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew where a run of the same models was cut off.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    output: Output = OutputFormat.HUMAN,
    progress: Progress = ProgressMode.AUTO,
) -> None:
    """Install, load, check parity through HTTP and measure models; write results and the report."""
    speak = _speak(output, progress)
    if weights not in get_args(WeightsChoice):
        raise UsageError(
            f"unknown weights {weights!r}", field="weights", expected=", ".join(get_args(WeightsChoice))
        )
    if tier not in LENGTHS:
        known = ", ".join(LENGTHS)
        raise UsageError(f"unknown tier {tier!r}", field="tier", expected=known, hint=f"one of {known}")
    planned = plan(
        catalogue(),
        models=[name for name in models.split(",") if name],
        references=model or (),
        set_name=set_name,
        weights=cast("WeightsChoice", weights),
    )
    if dry_run:
        speak.result([one.as_dict() for one in planned], lambda: table.of_plan(planned))
        return
    if claims_numbers(tier):
        intervals.require()
    drawn = seed if seed is not None else random.SystemRandom().randrange(2**31)
    host = environment.record()
    identity = {"tier": tier, "host": host.id, "versions": {"mlos": __version__, **host.versions}}
    journal = Journal.open(results_folder, planned, identity, drawn, fresh=fresh)
    terms = Terms(Settings(), tier, journal.seed, speak, progress, began=None if keep else journal.started)
    run, interrupted = _run(planned, journal, host, terms)
    path = run.save(results_folder)
    if not interrupted:
        journal.close()
    page = reporting.write(_with_earlier(run, results_folder, speak), results_folder / "index.html")
    speak.result(
        run.model_dump(mode="json", exclude={"rows": {"__all__": _RAW}}),
        lambda: table.of_run(run),
        brief=[f"{row.name} {row.status}" for row in run.rows],
    )
    counts = ", ".join(f"{run.count(status)} {status}" for status in get_args(results.Status))
    cached = sum(row.install is not None and row.install.cached for row in run.rows)
    if cached:
        counts += f"; {cached} of {len(run.rows)} packages reused (cached)"
    speak.note(f"{counts}\nresults: {path}\nreport:  {page}")
    if interrupted:
        raise KeyboardInterrupt
    _require(run)


@app.command()
def report(
    paths: Annotated[list[Path] | None, typer.Argument(help="Result files or folders of them.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("site/index.html"),
    output: Output = OutputFormat.HUMAN,
) -> None:
    """Draw a self-contained page from results."""
    speak = _speak(output, ProgressMode.AUTO)
    page = reporting.write(results.read_runs(paths or [Path("results")]), out)
    speak.result({"page": str(page)}, lambda: str(page), brief=[str(page)])


def _run(
    planned: tuple[PlannedModel, ...], journal: Journal, host: environment.Environment, terms: Terms
) -> tuple[results.Run, bool]:
    """Validate each model that the journal does not have yet; also whether a person ended it before its end."""
    interrupted, started = False, journal.started
    if journal.rows:
        terms.console.note(
            f"going on with the run of {started:%Y-%m-%d %H:%M:%S} UTC: {len(journal.rows)} of {len(planned)} "
            "models are done (--fresh begins anew)"
        )
    rows = list(journal.rows)
    for at, one in enumerate(planned[len(rows) :], len(rows) + 1):
        terms.console.note(f"[{at}/{len(planned)}] {one.name}: {one.reference} ({one.weights_reason})")
        try:
            rows.append(runner.validate(one, terms))
        except KeyboardInterrupt:
            rows += [runner.not_reached(left, terms, "interrupted") for left in planned[len(rows) :]]
            interrupted = True
            break
        journal.add(rows[-1])
        terms.console.note(f"[{at}/{len(planned)}] {one.name}: {_said(rows[-1])}")
    run = results.Run(
        run=started.strftime("%Y%m%dT%H%M%SZ"),
        started=started,
        finished=datetime.now(UTC),
        command=shlex.join(["mlos", *sys.argv[1:]]),
        tier=terms.tier,
        seed=terms.seed,
        environment=host.model_dump(mode="json") | {"id": host.id},
        versions={"mlos": __version__, **host.versions},
        rows=tuple(rows),
    )
    return run, interrupted


def _said(row: results.Row) -> str:
    """The row's outcome as a line: whether its package was there already, and what went wrong."""
    cached = "; package reused (cached)" if row.install and row.install.cached else ""
    return row.status + cached + (f": {row.reason}" if row.reason else "")


def _with_earlier(run: results.Run, folder: Path, speak: Console) -> list[results.Run]:
    """The runs of the folder for the page; this one alone where an earlier one cannot be read."""
    try:
        return results.read_runs([folder])
    except RefusedError as error:
        speak.warn(f"earlier results are left out of the page: {error.message}")
        return [run]


def _require(run: results.Run) -> None:
    if run.parity_failed:
        raise ParityError("an answer differs from the framework's", hint="see the report")
    undone = len(run.rows) - run.count("passed")
    if undone:
        raise MlosError(f"{undone} of {len(run.rows)} models did not pass", hint="see the report")
