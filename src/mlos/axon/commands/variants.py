"""``axon convert`` and ``axon quantize``: an installed model in another form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from mlos.axon.commands import OutputOption, ProgressOption, foreseen, settings, voice
from mlos.axon.commands.install import data, text
from mlos.axon.install import Installed
from mlos.axon.variants import CONVERTED, PROGRAM, QUANTIZED, STATIC, make, order
from mlos.errors import UsageError

_Model = Annotated[str, typer.Argument(help="What is installed, by name or reference; installed if it is not.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and do nothing.")]


def convert(
    model: _Model,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16; for GGUF F32, F16 or BF16.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help=f"{PROGRAM}: a program that torch itself computes, in fp32.")
    ] = None,
    dry_run: _DryRun = False,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Make a variant of a model in another precision, or for another engine, prove it, store it beside it."""
    if (precision is None) == (form is None):
        raise UsageError(
            "a variant is of another precision or in another format",
            field="precision, format",
            expected="one of --precision and --format",
            got="both" if form is not None else "none",
            hint=f"axon convert {model} --precision fp16, or --format {PROGRAM}",
        )
    if form is not None:
        if form.lower() != PROGRAM:
            raise UsageError(
                f"{form!r} is no format that this makes",
                field="format",
                expected=PROGRAM,
                got=repr(form),
                hint=f"axon convert {model} --format {PROGRAM}",
            )
        _run(model, PROGRAM, dry_run, output, progress)
    elif precision is not None:
        _known(precision, CONVERTED, "axon quantize", QUANTIZED)
        _run(model, precision, dry_run, output, progress)


def quantize(
    model: _Model,
    precision: Annotated[str, typer.Option(help="int8; for GGUF Q8_0, Q5_K_M or Q4_K_M.")],
    static: Annotated[
        bool, typer.Option("--static", help="int8 with scales fixed by calibration; convolutions need it.")
    ] = False,
    dry_run: _DryRun = False,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Make a variant of a model that computes on coarser numbers, prove it, store it beside it."""
    _known(precision, QUANTIZED, "axon convert", CONVERTED)
    _run(model, f"{precision}-{STATIC}" if static else precision, dry_run, output, progress)


def _known(
    precision: str, here: Mapping[str, tuple[str, ...]], other: str, there: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse a precision that this verb does not make, and name the verb that does."""
    ours, theirs = ([name for names in each.values() for name in names] for each in (here, there))
    if precision.lower() not in map(str.lower, ours):
        elsewhere = precision.lower() in map(str.lower, theirs)
        raise UsageError(
            f"{precision!r} is no precision that this makes",
            field="precision",
            expected=", ".join(ours),
            got=repr(precision),
            hint=f"{other} MODEL --precision {precision}" if elsewhere else None,
        )


def _run(model: str, label: str, dry_run: bool, output: Any, progress: Any) -> None:
    console = voice.choose(output, progress)
    if dry_run:
        foreseen.tell(model, label, console)
        return
    wanted = order(model, label, settings(), console)
    made = make(wanted, settings(), console)
    manifest = made.package.manifest
    extra = {
        "format": manifest.artifact.format,
        "precision": manifest.artifact.precision,
        "variant_of": manifest.variant_of,
        "quality": [measure.model_dump(mode="json") for measure in manifest.quality],
        "calibration": manifest.calibration.model_dump(mode="json") if manifest.calibration else None,
        "numerical_only": manifest.weights == "seeded",
    }
    console.result(data(made) | extra, lambda: _made_text(made), [made.package.digest])


def _made_text(made: Installed) -> RenderableType:
    return Group(text(made), *calibration(made), quality(made))


def calibration(made: Installed) -> list[RenderableType]:
    """How the scales of a variant in static int8 were fixed; nothing of any other."""
    found = made.package.manifest.calibration
    if found is None:
        return []
    left = f"; in fp32: {', '.join(found.left_out)}" if found.left_out else ""
    agreement = "" if found.argmax_agreement is None else f", argmax {found.argmax_agreement:.2%}"
    return [
        Text(
            f"calibrated on {found.examples} examples ({found.method}): {found.operators} operators in eight "
            f"bits, {len(found.left_out)} left out{left}; on {found.held_back} others: cosine "
            f"{found.cosine:.4f}{agreement}"
        )
    ]


def quality(made: Installed) -> RenderableType:
    """What the variant does at its task; in words where nothing can be said."""
    manifest = made.package.manifest
    if manifest.weights == "seeded":
        return Text("numerical only: the weights are seeded, so nothing is said of quality")
    if not manifest.quality:
        return Text("no task measure: none is known for " + ", ".join(manifest.tasks))
    return Group(
        *(
            Text(
                f"{measure.task}: {measure.metric} {measure.variant:.4f}, "
                f"the original's {measure.original:.4f}; "
                f"order agreement (Kendall's tau-b) {measure.agreement:.4f}"
            )
            for measure in manifest.quality
        )
    )
