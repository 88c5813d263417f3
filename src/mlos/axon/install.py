"""From a reference to an installed package: resolve, download, verify, convert, prove, package.

Nothing is visible before the last step, which is atomic; a kill before it leaves only resumable downloads and a
staging folder that the next install reclaims. Installs of the same reference wait for each other, and all but
the first find it done.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mlos import __version__, formats
from mlos.axon.draft import Origin, convert_to_draft, take_as_draft
from mlos.axon.memory import require_memory
from mlos.axon.pickles import replace_pickles
from mlos.axon.prove import prove, require_opening
from mlos.axon.sources import Resolution, Source, offline, source_of
from mlos.axon.sources.gguf_choice import canonical
from mlos.axon.sources.lookalike import lookalike
from mlos.axon.sources.selection import is_pickle
from mlos.axon.zoo import with_test_data
from mlos.catalogue import Entry, catalogue
from mlos.console import Console
from mlos.errors import HubError, NotFoundError, UsageError
from mlos.model import ParityMeasure, Reference
from mlos.parity import tolerance_named, tolerance_of
from mlos.settings import Settings
from mlos.store import InstallRecord, Package, Store

STAGES = ("download", "verify", "convert", "parity", "package")
_CONVERTED = 3
"""Bytes of room per byte of SafeTensors, beside the download: from fp16 to fp32 they double, and the exporter
keeps a copy while it works."""
_CONVERTED_TO_GGUF = 1.5
"""The same for language models: as F16, and as Q4_K_M made of that."""


@dataclass(frozen=True)
class Installed:
    """The package; whether it was there already, sound; seconds per stage of the install that made it."""

    package: Package
    cached: bool
    seconds: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What an install would do.

    ``bytes_needed`` are needed on the store's disk, at most, while it runs; ``framework`` is the number of
    parameters that a framework loads, 0 if none does or nobody says how many they are.
    """

    origin: Origin
    bytes_needed: int
    framework: int
    installed: Package | None


@dataclass
class _Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds[name] + time.monotonic() - started, 3)


def install(
    text: str, settings: Settings, console: Console, *, network: bool = True, allow_pickle: bool = False
) -> Installed:
    """Install what ``text`` names: a short name of the catalogue, or a reference.

    Behind a ``+`` it may ask for a form that its repository publishes (:func:`comes_published`).

    A package of the same reference and commit is verified and, if sound, kept; if not, it is made again, which
    repairs it. Without ``network``, a sound package of whatever commit serves for ``@latest``. With
    ``allow_pickle``, weights that are pickles alone are read, in a sandbox of their own.

    Raises:
        MlosError: of every kind that the stages raise; what was installed before is as it was.
    """
    store = Store(settings.store)
    reference, entry = _named(text, console)
    source = source_of(reference)
    severed = source.remote and (offline() or not network)
    known = _installed(store, reference, any_commit=severed)
    if known is not None and _sound(store, known, console):
        return Installed(known, cached=True, seconds=known.record.seconds)
    if severed:
        raise HubError(
            f"{reference} is not installed, and the network is not to be used",
            hint="allow the network, or install what needs none: axon install seeded/NAMESPACE/NAME",
        )
    planned = _plan(source, reference, entry, store, console, allow_pickle)
    with _alone(store, planned.origin):
        known = _installed(store, planned.origin.resolution.reference)
        if known is not None and _sound(store, known, console):
            return Installed(known, cached=True, seconds=known.record.seconds)
        return _make(planned, source, store, console)


def plan(
    text: str, settings: Settings, console: Console, *, network: bool = True, allow_pickle: bool = False
) -> Plan:
    """What :func:`install` would do, without doing it: asks the source, and looks into the store."""
    store = Store(settings.store)
    reference, entry = _named(text, console)
    source = source_of(reference)
    if source.remote and not network:
        raise HubError(f"{reference} cannot be looked up: the network is not to be used")
    return _plan(source, reference, entry, store, console, allow_pickle)


def comes_published(text: str, settings: Settings, *, network: bool = True) -> bool:
    """Whether the form that ``text`` asks for behind a ``+`` is a file of its repository, not one to make here.

    What is installed of the repository tells; else its source is asked, if it may be.
    """
    if text.startswith("file:") or "+" not in text:
        return False
    with contextlib.suppress(NotFoundError):
        return Store(settings.store).find(text.partition("+")[0]).manifest.golden is None
    reference = catalogue().resolve(text.partition("+")[0]).reference
    source = source_of(reference)
    if not source.forms:
        return False
    for package in Store(settings.store).packages():
        if package.reference.partition("+")[0] == str(reference.at(package.manifest.commit)):
            return package.manifest.golden is None
    if source.remote and (offline() or not network):
        return False
    return not _is_converted(source.resolve(reference))


def _named(text: str, console: Console) -> tuple[Reference, Entry | None]:
    plain, plus, form = (text, "", "") if text.startswith("file:") else text.partition("+")
    resolved = catalogue().resolve(plain)
    reference = resolved.reference
    if plus and not source_of(reference).forms:
        raise UsageError(
            f"{text} is a variant, which is made of its original",
            field="reference",
            expected="a reference without '+'",
            got=repr(text),
            hint=f"axon quantize or axon convert {reference}",
        )
    if plus:
        reference = Reference.parse(f"{reference}+{canonical(form)}")
    if resolved.note is not None:
        console.note(resolved.note)
    if resolved.reference.source == "hf" and resolved.entry is None:
        known = {
            Reference.parse(text)
            for entry in catalogue().entries.values()
            for text in (entry.references.hub, entry.references.gguf)
            if text
        }
        near = lookalike(resolved.reference.namespace, {reference.namespace for reference in known})
        if near is not None:
            console.warn(
                f"{resolved.reference.namespace} is one letter away from the known publisher {near}: "
                "check that it is the one you mean"
            )
    return reference, resolved.entry


def _plan(
    source: Source,
    reference: Reference,
    entry: Entry | None,
    store: Store,
    console: Console,
    allow_pickle: bool,
) -> Plan:
    resolution = source.resolve(reference, allow_pickle=allow_pickle)
    for warning in resolution.warnings:
        console.warn(warning)
    for note in resolution.notes:
        console.note(note)
    converted = _is_converted(resolution)
    name = entry.name if entry is not None else _short_name(resolution.reference)
    if resolution.reference.variant is not None:
        name = f"{name}-{resolution.reference.variant}"
    to_gguf = entry is not None and tolerance_named(entry.tolerance).kl_divergence is not None
    grown = int(resolution.size * (_CONVERTED_TO_GGUF if to_gguf else _CONVERTED)) if converted else 0
    parameters = resolution.parameters or (entry.parameters if entry is not None else 0)
    return Plan(
        Origin(name, resolution, entry),
        bytes_needed=resolution.size + grown,
        framework=parameters if converted else 0,
        installed=_installed(store, resolution.reference),
    )


def _is_converted(resolution: Resolution) -> bool:
    """Whether a framework loads the weights."""
    return not resolution.files or any(
        file.path.endswith(".safetensors") or is_pickle(file.path) for file in resolution.files
    )


def _make(planned: Plan, source: Source, store: Store, console: Console) -> Installed:
    origin, clock = planned.origin, _Clock()
    store.require_room(planned.bytes_needed)
    require_memory(planned.framework, origin.name)
    with store.staging(planned.bytes_needed) as arrivals, store.staging() as staging:
        with clock.stage("download"):
            source.fetch(origin.resolution, arrivals.folder, store, console)
        with clock.stage("convert"):
            readers = replace_pickles(arrivals.folder, store, console)
        with clock.stage("verify"), console.step("verify"):
            survey = formats.survey(arrivals.folder)
        with clock.stage("convert"):
            if survey.format == "safetensors":
                require_memory(sum(each.parameters for each in survey.summaries), origin.name)
                draft = convert_to_draft(origin, arrivals.folder, staging.folder, console, readers)
            else:
                draft = take_as_draft(origin, arrivals.folder, survey, staging.folder, console)
                row = tolerance_of(draft.artifact, _tolerance(origin.entry, draft.tasks))
                draft = with_test_data(draft, arrivals.folder, staging.folder, row, console)
        with clock.stage("package"):
            manifest = draft.manifest(origin, staging.folder)
        if manifest.golden is not None:
            with clock.stage("parity"):
                measures: tuple[ParityMeasure, ...] = ()
                for artifact in (*draft.forms, manifest.artifact):
                    form = manifest.model_copy(update={"artifact": artifact})
                    measures += prove(staging.folder, form, _tolerance(origin.entry, manifest.tasks), console)
                manifest = manifest.model_copy(update={"parity": measures})
        elif manifest.artifact.format == "onnx":
            with clock.stage("verify"):
                require_opening(staging.folder, manifest, console)
        with clock.stage("package"), console.step("package"):
            # The record is part of what is committed, so its own time for this stage ends before the commit.
            record = InstallRecord(
                installed_at=datetime.now(UTC), seconds=dict(clock.seconds), axon=__version__
            )
            package = store.commit(staging, manifest, record)
    return Installed(package, cached=False, seconds=clock.seconds)


def _installed(store: Store, reference: Reference, *, any_commit: bool = False) -> Package | None:
    """The package of exactly this reference at this commit; or, if so asked, of the newest commit there is."""
    for package in store.packages():
        if package.reference == str(reference):
            return package
        here = str(reference.at(package.manifest.commit))
        if any_commit and reference.wants_latest and package.reference == here:
            return package
    return None


def _sound(store: Store, package: Package, console: Console) -> bool:
    with console.step(f"check {package.name}"):
        faults = store.verify(package)
    for fault in faults:
        console.note(f"{package.name}: file {fault.path} is {fault.problem}; installing it again")
    return not faults


@contextmanager
def _alone(store: Store, origin: Origin) -> Iterator[None]:
    """Wait for other installs of the same reference: the lock of a partial file that is never written."""
    key = hashlib.sha256(f"install {origin.resolution.reference}".encode()).hexdigest()
    with store.partial(key):
        yield


def _tolerance(entry: Entry | None, tasks: Sequence[str]) -> str:
    """The row of the tolerance table: the entry's, else the catalogue's for the first task."""
    return entry.tolerance if entry is not None else catalogue().defaults[tasks[0]].tolerance


def _short_name(reference: Reference) -> str:
    """A name for a model outside the catalogue: its repository's, or its file's or folder's."""
    name = Path(reference.name).stem if reference.name.endswith((".onnx", ".gguf")) else reference.name
    name = re.sub(r"-[0-9]{5}-of-[0-9]{5}$", "", name)  # the first part stands for the model
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
