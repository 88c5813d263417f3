"""Variants: another form of an installed model, proved like the original and stored beside it.

A variant is a package of its own. Its reference is the original's with ``+NAME`` behind the commit, its short
name the original's with ``-NAME`` behind; it shares the files that do not change (tokenizer, configuration,
golden record), is held to the framework's answers by the row of its own precision, and is not stored where it
fails.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mlos import __version__
from mlos.axon.convert import require_framework
from mlos.axon.install import Installed, Plan, install, plan
from mlos.axon.pickles import replace_pickles
from mlos.axon.prove import prove
from mlos.axon.sources import source_of
from mlos.axon.sources.digests import sha256_of
from mlos.axon.variants.quality import measured
from mlos.catalogue import catalogue
from mlos.console import Console
from mlos.errors import CorruptError, HubError, MlosError, NotFoundError, RefusedError, UsageError
from mlos.host.child import run_confined
from mlos.host.sandbox import Policy
from mlos.model import Artifact, Calibration, FileEntry, FileRole, Manifest, ModelFormat, Reference
from mlos.model.manifest import normal_path
from mlos.parity import tolerance_named, tolerance_of
from mlos.settings import Settings
from mlos.store import InstallRecord, Package, Store

CONVERTED = {"onnx": ("fp32", "fp16", "bf16"), "gguf": ("F32", "F16", "BF16")}
"""Precisions that hold numbers as they are, by the format of the package."""
QUANTIZED = {"onnx": ("int8",), "gguf": ("Q8_0", "Q5_K_M", "Q4_K_M")}
"""Precisions that hold numbers on a coarser scale, likewise."""
STATIC = "static"
PROGRAM: ModelFormat = "pt2"
"""The form that torch computes, as ``torch.export`` writes it of a model that is packaged as ONNX."""
_CHILD = "mlos.axon.variants.child"
_TIMEOUT = 1800.0  # seconds
_GIB = 1 << 30
_REPLACED: tuple[FileRole, ...] = ("graph", "weights")


class Written(BaseModel):
    """What the child wrote: the artifact, its files with their roles, programs' versions, how it calibrated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    files: tuple[tuple[str, FileRole], ...]
    tools: dict[str, str]
    calibration: Calibration | None


@dataclass(frozen=True)
class Form:
    """What a variant is: in which precision, with scales fixed beforehand or not, or as a program of torch."""

    precision: str
    static: bool = False
    program: bool = False

    @property
    def label(self) -> str:
        """What names it in references and short names."""
        if self.program:
            return PROGRAM
        return f"{self.precision}-{STATIC}" if self.static else self.precision

    @property
    def of_source(self) -> bool:
        """Whether it is made of the source's weights again, and not of the original's files."""
        return self.program or self.precision in (*CONVERTED["gguf"], *QUANTIZED["gguf"])


def forms_of(*formats: ModelFormat) -> dict[str, Form]:
    """The forms of packages in these formats, by label in lower case."""
    found = [Form(name) for kind in formats for name in (*CONVERTED.get(kind, ()), *QUANTIZED.get(kind, ()))]
    if "onnx" in formats:
        found += [Form("int8", static=True), Form("fp32", program=True)]
    return {form.label.lower(): form for form in found}


@dataclass(frozen=True)
class Order:
    """One variant to make of ``original``."""

    original: Package
    form: Form

    @property
    def name(self) -> str:
        """Its short name."""
        return f"{self.original.name}-{self.form.label}"

    @property
    def reference(self) -> str:
        """Its reference."""
        return f"{self.original.reference}+{self.form.label}"

    @property
    def row(self) -> str:
        """The row of tolerances that it is held to; at full precision the one of its original."""
        return tolerance_of(
            self.original.manifest.artifact.model_copy(update={"precision": self.form.precision}),
            _named(self.original.manifest, self.original),
        ).name


@dataclass(frozen=True)
class Foreseen:
    """A variant of a model that is not installed: ``plan`` is its original's, ``row`` what it is held to."""

    plan: Plan
    form: Form
    row: str

    @property
    def name(self) -> str:
        """Its short name."""
        return f"{self.plan.origin.name}-{self.form.label}"

    @property
    def reference(self) -> str:
        """Its reference."""
        return f"{self.plan.origin.resolution.reference}+{self.form.label}"


def foreseen(
    text: str, label: str, settings: Settings, console: Console, *, network: bool = True
) -> Order | Foreseen:
    """What making the form ``label`` of the model ``text`` takes, without doing or installing anything.

    Raises:
        MlosError: as :func:`order` and :func:`~mlos.axon.install.plan` do.
    """
    try:
        Store(settings.store).find(text)
    except NotFoundError:
        planned = plan(text, settings, console, network=network)
        form = _form(label, "there is no form", "onnx", "gguf")
        entry = planned.origin.entry
        full = entry.tolerance if entry is not None and form.precision == "fp32" else form.precision
        return Foreseen(planned, form, tolerance_named(full).name)
    return order(text, label, settings, console, network=network)


def order(text: str, label: str, settings: Settings, console: Console, *, network: bool = True) -> Order:
    """What to make of the model ``text`` (installed first if it is not) in the form ``label``.

    Raises:
        UsageError: if the model is a variant itself, or has no such form.
        RefusedError: if no framework answers for it, so that nothing could prove a variant.
    """
    try:
        original = Store(settings.store).find(text)
    except NotFoundError:
        original = install(text, settings, console, network=network).package
    manifest = original.manifest
    if manifest.variant_of is not None:
        raise UsageError(
            f"{original.name} is a variant itself; variants are made of the original",
            field="reference",
            expected=original.reference.rpartition("+")[0],
            got=original.reference,
        )
    if manifest.golden is None:
        raise RefusedError(
            f"{original.name} is served as it came: it has no golden record, so nothing could prove a variant",
            field="golden",
            expected="a model that was converted from its framework's weights",
            got=f"a {manifest.source_format} file",
        )
    kind = manifest.artifact.format
    form = _form(label, f"a model in {kind} has no form", kind)
    if form.program and manifest.source_format == "onnx":
        raise RefusedError(
            f"{original.name} was published as ONNX: only the framework's weights become a program of torch",
            field="format",
            expected="a model that was converted from its framework's weights",
            got="an onnx file",
        )
    if form.precision == manifest.artifact.precision and not form.program:
        raise UsageError(
            f"{original.name} is {form.precision} already",
            field="precision",
            expected=", ".join(
                each.label for each in forms_of(kind).values() if each.precision != form.precision
            ),
            got=form.precision,
        )
    if form.static and manifest.artifact.parts:
        raise RefusedError(
            f"{original.name} is a model of several graphs, whose scales cannot be calibrated part by part yet",
            field="static",
            expected="a model of one graph",
            got=", ".join(manifest.artifact.parts),
            hint=f"axon quantize {original.name} --precision int8",
        )
    return Order(original, form)


def _form(label: str, refusal: str, *formats: ModelFormat) -> Form:
    known = forms_of(*formats)
    if label.lower() not in known:
        raise UsageError(
            f"{refusal} {label!r}",
            field="form",
            expected=", ".join(form.label for form in known.values()),
            got=repr(label),
        )
    return known[label.lower()]


def install_variant(text: str, settings: Settings, console: Console, *, network: bool = True) -> Installed:
    """Make the variant that a reference with ``+NAME`` behind it names; its original is installed first.

    Raises:
        MlosError: as :func:`order` and :func:`make` do.
    """
    original, _, label = text.partition("+")
    wanted = order(original, label, settings, console, network=network)
    return make(wanted, settings, console, network=network)


def make(wanted: Order, settings: Settings, console: Console, *, network: bool = True) -> Installed:
    """Make, prove and store a variant; one that is installed and sound is kept.

    Raises:
        ParityError: with the measured figures, if it fails the row of its precision; nothing is stored then.
        RefusedError: if the model has nothing to quantize, or a library refuses.
    """
    store, original = Store(settings.store), wanted.original
    for package in store.packages():
        if package.reference == wanted.reference and package.manifest.variant_of == original.digest:
            with console.step(f"check {package.name}"):
                faults = store.verify(package)
            if not faults:
                return Installed(package, cached=True, seconds=package.record.seconds)
    if wanted.form.program:
        require_framework("exporting a program of torch")
    room = 3 * original.manifest.size
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def lap(stage: str) -> None:
        nonlocal began
        seconds[stage] = round(time.monotonic() - began, 3)
        began = time.monotonic()

    with store.lease(original), store.staging(room) as arrivals, store.staging() as staging:
        kept = [file for file in original.manifest.files if file.role not in _REPLACED]
        _copy(original, [file.path for file in kept], staging.folder)
        if wanted.form.of_source:
            _fetch(original, arrivals.folder, store, console, network=network)
        else:
            replaced = [file.path for file in original.manifest.files if file.role in _REPLACED]
            _copy(original, replaced, arrivals.folder)
        lap("download")
        written = _write(wanted, arrivals.folder, staging.folder, console)
        lap("convert")
        manifest = _manifest(wanted, written, kept, staging.folder)
        measures = prove(staging.folder, manifest, _named(manifest, original), console)
        lap("parity")
        quality = measured(original, manifest, staging.folder, console)
        lap("quality")
        manifest = manifest.model_copy(update={"parity": measures, "quality": quality})
        record = InstallRecord(installed_at=datetime.now(UTC), seconds=dict(seconds), axon=__version__)
        with console.step("package"):
            package = store.commit(staging, manifest, record)
    return Installed(package, cached=False, seconds=seconds)


def _write(wanted: Order, source: Path, output: Path, console: Console) -> Written:
    artifact = wanted.original.manifest.artifact
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    policy = Policy(
        read=(source,),
        write=(output,),
        memory_bytes=12 * size + 6 * _GIB,
        cpu_seconds=int(_TIMEOUT) * 2,
        file_bytes=4 * size + _GIB,
    )
    request: dict[str, Any] = {
        "source": str(source.absolute()),
        "output": str(output.absolute()),
        "manifest": wanted.original.manifest.model_dump(mode="json"),
        "precision": wanted.form.precision,
        "static": wanted.form.static,
        "program": wanted.form.program,
    }
    unit = "tensors" if artifact.format == "gguf" else "operators" if wanted.form.static else ""
    with console.step(wanted.form.label, unit=unit) as step:

        def show(event: dict[str, Any]) -> None:
            if "total" in event:
                step.expect(float(event["total"]))
            step.advance(float(event.get("done", 0)))

        answer = run_confined(_CHILD, request, policy, timeout=_TIMEOUT, on_event=show)
    try:
        written = Written.model_validate(answer)
    except ValidationError as error:
        raise CorruptError(f"the answer of {_CHILD} is malformed: {error.errors()[0]['msg']}") from error
    for path, _ in written.files:
        if not normal_path(path) or not (output / path).is_file():
            raise CorruptError(f"{_CHILD} named {path!r} and did not write it", field=path)
    return written


def _manifest(wanted: Order, written: Written, kept: list[FileEntry], folder: Path) -> Manifest:
    new = [
        FileEntry(path=path, size=(folder / path).stat().st_size, sha256=sha256_of(folder / path), role=role)
        for path, role in written.files
    ]
    original = wanted.original.manifest
    fields = original.model_dump(exclude={"schema_version"}) | {
        "name": wanted.name,
        "reference": wanted.reference,
        "artifact": written.artifact,
        "parity": (),
        "variant_of": wanted.original.digest,
        "calibration": written.calibration,
        "files": tuple(sorted((*kept, *new), key=lambda file: file.path)),
        "tools": {**({} if wanted.form.program else original.tools), **written.tools, "mlos": __version__},
    }
    return Manifest.model_validate(fields)


def _named(manifest: Manifest, original: Package) -> str:
    """The row at full precision: the catalogue's for the model, else the one the original was held to."""
    entry = catalogue().match(_plain(original))
    if entry is not None:
        return entry.tolerance
    return next((measure.tolerance for measure in original.manifest.parity), manifest.artifact.precision)


def _fetch(original: Package, folder: Path, store: Store, console: Console, *, network: bool) -> None:
    """Bring the weights that the original was made of: a quantized file, or a graph, is no source."""
    reference = _plain(original).at(original.manifest.commit)
    source = source_of(reference)
    if source.remote and not network:
        raise HubError(f"the weights of {reference} are needed again, and the network is not to be used")
    resolution = source.resolve(reference, allow_pickle=original.manifest.source_format == "pytorch")
    source.fetch(resolution, folder, store, console)
    replace_pickles(folder, store, console)


def _plain(package: Package) -> Reference:
    return Reference.parse(package.reference.removesuffix(f"@{package.manifest.commit}"))


def _copy(package: Package, paths: list[str], folder: Path) -> None:
    """Copy files of a package: a library may refuse a file with several hard links, as those of a store are."""
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(package.path(path), target)
        except OSError as error:
            raise MlosError(f"file {path} of {package.name} cannot be copied: {error.strerror}") from error
