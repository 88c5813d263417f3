"""``axon tune``: which engine, precision and threads serve a model best on this host."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlos.axon.commands import OutputOption, ProgressOption, settings, voice
from mlos.errors import UsageError
from mlos.host.environment import usable_cores
from mlos.store import Store
from mlos.tune.choice import PRECISIONS, Choice, Precision, chosen
from mlos.tune.paired import LEAST_GROUPS
from mlos.tune.record import Trial, Tuning
from mlos.tune.tuner import PAIRS, tune_and_record, variants_of


def run(
    model: Annotated[str, typer.Argument(help="What is installed, by name or reference.")],
    precision: Annotated[
        str,
        typer.Option(help="fp32 (equal to the framework), auto (the fastest that passes), bf16, fp16 or int8."),
    ] = "fp32",
    pairs: Annotated[
        int, typer.Option(min=LEAST_GROUPS, help="Groups of four blocks per candidate; 20 for a public claim.")
    ] = PAIRS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and record nothing.")] = False,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Time engines, precisions and threads on this host, prove each, and record the choice for mlos_core.

    Nothing else should run meanwhile. A running mlos_core takes the choice when it loads the model next.
    """
    console = voice.choose(output, progress)
    wanted, current = _known(precision), settings()
    store = Store(current.store)
    package, threads = store.find(model), current.threads or usable_cores()
    tuning = tune_and_record(package, wanted, current, console, threads=threads, pairs=pairs, dry_run=dry_run)
    variants = variants_of(store, package)
    choice = chosen(package, variants, tuning, wanted, threads=threads, fixed_threads=False)
    console.result(
        _data(tuning, choice, recorded=not dry_run), lambda: _text(tuning, choice), [str(choice.candidate)]
    )


def _known(precision: str) -> Precision:
    for known in PRECISIONS:
        if precision == known:
            return known
    raise UsageError(
        f"{precision!r} is no class of precision",
        field="precision",
        expected=", ".join(PRECISIONS),
        got=repr(precision),
    )


def _data(tuning: Tuning, choice: Choice, *, recorded: bool) -> dict[str, Any]:
    return {
        "choice": {
            **choice.candidate.model_dump(mode="json"),
            "reason": choice.reason,
            "batching": choice.batching.model_dump(mode="json") if choice.batching else None,
        },
        "recorded": recorded,
        "record": tuning.model_dump(mode="json"),
    }


def _text(tuning: Tuning, choice: Choice) -> RenderableType:
    table = Table("candidate", "largest error", "time ratio [95 %]", "floor", "verdict")
    for trial in tuning.trials:
        ratio = trial.ratio
        table.add_row(
            Text(str(trial.candidate) + (" (variant)" if trial.candidate.digest != tuning.digest else "")),
            Text(_parity(trial)),
            Text("" if ratio is None else f"{ratio}, n {ratio.n}"),
            Text("" if ratio is None else f"{ratio.floor:.1%}"),
            Text(trial.verdict if trial.passed else trial.reason),
        )
    lines = [Text("time ratio: over the default's; of streams, over that of as many runs in a row")]
    lines += [Text(f"chosen: {choice.candidate}"), Text(choice.reason)]
    lines.append(Text(_batching(tuning, choice)))
    return Group(table, *lines)


def _batching(tuning: Tuning, choice: Choice) -> str:
    trial = next((each for each in tuning.trials if each.candidate == choice.candidate), tuning.default)
    if trial.unbatched is not None:
        return f"no batches: {trial.unbatched}"
    gains = ", ".join(f"{shape} {gain}" for shape, gain in trial.together.items())
    measured = f"time of a batch over one by one: {gains}" if gains else "not measured"
    if choice.batching is None:
        return f"no batches, for they do not pay: {measured}"
    upto = "" if choice.batching.longest is None else f" up to {choice.batching.longest} tokens"
    return f"batches of {choice.batching.most} pay{upto}: {measured}"


def _parity(trial: Trial) -> str:
    if not trial.parity:
        return "not passed"
    error = max(measure.max_abs_error for measure in trial.parity)
    cosine = min(measure.cosine for measure in trial.parity)
    return f"{error:.2g}, cosine {cosine:.7f} ({trial.tolerance})"
