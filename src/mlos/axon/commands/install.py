"""``axon install``: package a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from mlos.axon.commands import OutputOption, ProgressOption, facts, foreseen, settings, voice
from mlos.axon.install import STAGES, Installed, Plan, comes_published, install, plan
from mlos.axon.memory import framework_memory
from mlos.axon.variants import install_variant
from mlos.model import ParityMeasure
from mlos.parity import tolerance_named


def run(
    reference: Annotated[
        str,
        typer.Argument(help="What to install: source/namespace/name@revision, file:PATH, or a short name."),
    ],
    offline: Annotated[bool, typer.Option("--offline", help="Do not use the network.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read weights that are pickles alone, in a sandbox without network and programs.",
        ),
    ] = False,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Package a model: download, verify, convert, prove against its own framework, store."""
    console = voice.choose(output, progress)
    asks_form = "+" in reference and not reference.startswith("file:")
    made_here = asks_form and not comes_published(reference, settings(), network=not offline)
    if dry_run and made_here:
        model, _, label = reference.partition("+")
        foreseen.tell(model, label, console, network=not offline)
        return
    if dry_run:
        planned = plan(reference, settings(), console, network=not offline, allow_pickle=allow_pickle)
        console.result(
            _plan_data(planned), lambda: _plan_text(planned), [str(planned.origin.resolution.reference)]
        )
        return
    if made_here:
        installed = install_variant(reference, settings(), console, network=not offline)
    else:
        installed = install(reference, settings(), console, network=not offline, allow_pickle=allow_pickle)
    console.result(data(installed), lambda: text(installed), [installed.package.digest])


def data(installed: Installed) -> dict[str, Any]:
    """An installed package as ``axon install`` gives it."""
    package, manifest = installed.package, installed.package.manifest
    return {
        "name": manifest.name,
        "reference": package.reference,
        "digest": package.digest,
        "cached": installed.cached,
        "weights": manifest.weights,
        "seconds": {stage: installed.seconds.get(stage, 0.0) for stage in STAGES},
        "size": manifest.size,
        "licence": manifest.licence,
        "parity": [measure.model_dump(mode="json") for measure in manifest.parity],
        "folder": str(package.folder),
    }


def text(installed: Installed) -> RenderableType:
    """An installed package for a person, its parity below it."""
    package, manifest = installed.package, installed.package.manifest
    done = "is installed already, and sound" if installed.cached else "is installed"
    times = ", ".join(f"{stage} {installed.seconds.get(stage, 0.0):.1f}" for stage in STAGES)
    rows = [
        ("reference", package.reference),
        ("digest", package.digest),
        ("weights", manifest.weights),
        ("licence", manifest.licence or "none declared: ask the publisher"),
        ("size", decimal(manifest.size)),
        ("tasks", ", ".join(manifest.tasks)),
        ("seconds", times + (" (when it was made)" if installed.cached else "")),
    ]
    return Group(Text(f"{manifest.name} {done}", style="bold"), facts(rows), parity_table(manifest.parity))


def parity_table(measures: tuple[ParityMeasure, ...]) -> RenderableType:
    """Error beside tolerance, per output; in words where no framework answers for the file."""
    if not measures:
        return Text("parity: no reference (no framework answers for this file)")
    table = Table(
        "output",
        "max |error|",
        "tolerance",
        "cosine",
        "argmax",
        "KL, nats",
        "verdict",
        title="parity",
        title_justify="left",
    )
    for measure in measures:
        bound = (
            ""
            if measure.atol is None or measure.rtol is None
            else f"atol {measure.atol:g}, rtol {measure.rtol:g} "
        )
        agreement, divergence = measure.argmax_agreement, measure.kl_divergence
        most = tolerance_named(measure.tolerance).kl_divergence
        table.add_row(
            measure.output,
            f"{measure.max_abs_error:.3g}",
            f"{bound}({measure.tolerance})",
            f"{measure.cosine:.7f}",
            "" if agreement is None else f"{agreement:.2%}",
            "" if divergence is None or most is None else f"{divergence:.2g} of {most:g}",
            "[green]pass[/]" if measure.passed else "[red]fail[/]",
        )
    return table


def _plan_data(planned: Plan) -> dict[str, Any]:
    resolution = planned.origin.resolution
    return {
        "name": planned.origin.name,
        "reference": str(resolution.reference),
        "commit": resolution.commit,
        "weights": resolution.weights,
        "licence": planned.origin.licence,
        "installed": planned.installed is not None,
        "download": resolution.size,
        "room_needed": planned.bytes_needed,
        "memory_needed": framework_memory(planned.framework) if planned.framework else None,
        "files": [{"path": file.path, "size": file.size} for file in resolution.files],
    }


def _plan_text(planned: Plan) -> RenderableType:
    resolution = planned.origin.resolution
    rows = [
        ("reference", str(resolution.reference)),
        ("weights", resolution.weights),
        ("licence", planned.origin.licence or "none declared"),
        ("to fetch", decimal(resolution.size)),
        ("room needed", decimal(planned.bytes_needed)),
        ("memory needed", decimal(framework_memory(planned.framework)) if planned.framework else "little"),
        ("files", "\n".join(file.path for file in resolution.files) or "made here"),
    ]
    state = "is installed: it would be verified" if planned.installed else "would be installed"
    return Group(Text(f"{planned.origin.name} {state}", style="bold"), facts(rows))
