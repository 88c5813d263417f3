"""``axon verify``: hash packages again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlos.axon.commands import OutputOption, ProgressOption, settings, voice
from mlos.errors import CorruptError, RefusedError
from mlos.store import Broken, Fault, Package, Store


@dataclass(frozen=True)
class _Verdict:
    """What is wrong with one package: files, or the package as a whole; nothing if it is sound."""

    item: Package | Broken
    faults: tuple[Fault, ...] = ()
    error: RefusedError | None = None

    @property
    def sound(self) -> bool:
        return not self.faults and self.error is None


def run(
    model: Annotated[str | None, typer.Argument(help="Which package; all of them if not given.")] = None,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Hash every file of a package, or of all, and name what has changed. Needs no network."""
    console = voice.choose(output, progress)
    store = Store(settings().store)
    items: Sequence[Package | Broken] = (
        [*store.packages(), *store.broken()] if model is None else [store.find(model)]
    )
    verdicts = []
    with console.step("verify", total=len(items), unit="packages") as step:
        for item in items:
            if isinstance(item, Package):
                verdicts.append(_Verdict(item, faults=store.verify(item)))
            else:
                verdicts.append(_Verdict(item, error=item.error))
            step.advance(1)
    wrong = [verdict for verdict in verdicts if not verdict.sound]
    data = {"sound": not wrong, "packages": [_data(verdict) for verdict in verdicts]}
    console.result(data, lambda: _table(verdicts), [str(verdict.item.reference) for verdict in wrong])
    if wrong:
        raise _error(wrong)


def _data(verdict: _Verdict) -> dict[str, Any]:
    return {
        "name": verdict.item.name,
        "reference": verdict.item.reference,
        "digest": verdict.item.digest,
        "sound": verdict.sound,
        "faults": [asdict(fault) for fault in verdict.faults],
        "error": verdict.error.as_dict() if verdict.error else None,
    }


def _table(verdicts: Sequence[_Verdict]) -> RenderableType:
    if not verdicts:
        return Text("nothing is installed")
    table = Table("name", "reference", "verdict")
    table.columns[1].overflow = table.columns[2].overflow = "fold"
    for verdict in verdicts:
        problems = [f"{fault.path} is {fault.problem}" for fault in verdict.faults]
        if verdict.error is not None:
            problems.append(verdict.error.message)
        words = Text("\n".join(problems), style="red") if problems else Text("sound", style="green")
        table.add_row(Text(verdict.item.name), Text(verdict.item.reference), words)
    return table


def _error(wrong: Sequence[_Verdict]) -> CorruptError:
    """One line that names every file, up to a handful."""
    named = [
        f"{verdict.item.name}: {fault.path} is {fault.problem}" for verdict in wrong for fault in verdict.faults
    ]
    named += [verdict.error.message for verdict in wrong if verdict.error is not None]
    first = wrong[0]
    fault = first.faults[0] if first.faults else None
    return CorruptError(
        "; ".join(named[:5]) + (f"; and {len(named) - 5} more" if len(named) > 5 else ""),
        field=fault.path if fault else None,
        expected=fault.expected if fault else None,
        got=fault.got if fault else None,
        hint=(first.error.hint if first.error else None) or f"axon install {first.item.reference}",
    )
