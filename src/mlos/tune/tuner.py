"""Tuning a model: each candidate in a confined child of its own, beside the default that it is timed against.

A child holds both engines open and alternates between them, so what drifts meets both; that a fresh start of a
process may be faster or slower than another is not in the interval. The default is timed against itself first:
the same rule then says how much chance makes of nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import secrets
import shutil
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from mlos import __version__
from mlos.console import Console
from mlos.engines import compiles, engine_for, installed
from mlos.errors import MlosError, ParityError, RefusedError, WorkerError
from mlos.host.child import run_confined
from mlos.host.environment import record
from mlos.host.sandbox import Policy
from mlos.model import ParityMeasure
from mlos.parity import tolerance_of
from mlos.settings import Settings
from mlos.store import Package, Store
from mlos.tune import paired
from mlos.tune.candidates import candidates, require_golden, streamed
from mlos.tune.child import GIVE_UP, Order, Side
from mlos.tune.choice import Precision, chosen
from mlos.tune.paired import Group, Ratio, ratio_of, ratio_of_logs
from mlos.tune.record import Batching, Candidate, Trial, Tuning, compiled_folder, save
from mlos.tune.shapes import BATCH

PAIRS = 10
"""Groups of four blocks per candidate, where nobody asks for another number."""
_CHILD = "mlos.tune.child"
_TIMEOUT = 3600.0
_LEAST_PATIENCE, _PATIENCE = 300.0, 10.0
"""Seconds that any candidate has, and in how many times the default's time one is done that does not hang: one
that is slower by a quarter is given up early."""
_GIB = 1 << 30

_log = logging.getLogger(__name__)


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    single: str
    batch: int
    length: int | None


class _Found(BaseModel):
    """What a child answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measures: tuple[ParityMeasure, ...]
    groups: tuple[Group, ...]
    shapes: tuple[tuple[str, str, int, int | None], ...]
    batched: str | None
    version: str


def variants_of(store: Store, package: Package) -> list[Package]:
    """The installed packages that are other forms of ``package``."""
    return [each for each in store.packages() if each.manifest.variant_of == package.digest]


def tune_and_record(
    package: Package,
    precision: Precision,
    settings: Settings,
    console: Console,
    *,
    threads: int,
    pairs: int = PAIRS,
    dry_run: bool = False,
) -> Tuning:
    """Tune a package, which stays meanwhile, and record what was found; with ``dry_run`` nothing is recorded.

    Raises:
        NotFoundError: if the package has been removed.
        MlosError: as :func:`tune` does.
    """
    with Store(settings.store).lease(package):
        seed = secrets.randbelow(1 << 32)
        tuning = tune(package, precision, settings, console, threads=threads, pairs=pairs, seed=seed)
    if not dry_run:
        save(settings.home, tuning)
    return tuning


def tune(
    package: Package,
    precision: Precision,
    settings: Settings,
    console: Console,
    *,
    threads: int,
    pairs: int,
    seed: int,
) -> Tuning:
    """Prove and time every candidate; the record says what was found. Nothing is written but compiled forms.

    Raises:
        RefusedError: if the package has no golden record, so that nothing could prove another way.
        CorruptError: if files that can run code are not as they were committed.
        MissingExtraError: if scipy is not installed.
        MlosError: if the default itself cannot be proved or timed.
    """
    paired.require()
    require_golden(package)
    store = Store(settings.store)
    variants = variants_of(store, package)
    forms = {each.digest: each for each in (package, *variants)}
    for form in forms.values():
        if form.manifest.artifact.runs_code:
            store.check(form)

    timeout = _TIMEOUT

    def tried(candidate: Candidate, reference: Candidate) -> Trial:
        with console.step(f"{candidate}", total=pairs, unit="groups") as step:
            limit = timeout * candidate.streams  # which are timed against as many runs in a row
            return _try(candidate, reference, package, forms, pairs, seed, limit, lambda: step.advance(1))

    asked = candidates(package, variants, precision, threads)
    began = time.monotonic()
    default = tried(asked[0], asked[0])
    timeout = patience(time.monotonic() - began)
    versions = installed()
    tuning = Tuning(
        model=package.name,
        digest=package.digest,
        precision=precision,
        tuned_at=datetime.now(UTC),
        mlos=__version__,
        engines={name: versions[name] for name in sorted({each.engine for each in asked}) if name in versions},
        host=record(),
        seed=seed,
        trials=(default, *(tried(candidate, asked[0]) for candidate in asked[1:])),
    )
    for best in _bests(package, variants, tuning, precision, threads):
        several = [tried(each, best) for each in streamed(best, forms[best.digest].manifest.artifact)]
        tuning = tuning.model_copy(update={"trials": (*tuning.trials, *several)})
    for best in _bests(package, variants, tuning, precision, threads):
        with console.step(f"keep {best}"):
            for each in dict.fromkeys((best.model_copy(update={"streams": 1}), best)):
                _keep(each, forms[best.digest], settings.home, tuning.host.id)
    return tuning


def patience(default: float) -> float:
    """In how many seconds a candidate must be done where the default took ``default``: else it hangs."""
    return min(_TIMEOUT, max(_LEAST_PATIENCE, _PATIENCE * default))


def _bests(
    package: Package, variants: list[Package], tuning: Tuning, precision: Precision, threads: int
) -> list[Candidate]:
    """What a server would take: equal to the framework, and in the precision that was asked for."""
    found = []
    classes: tuple[Precision, ...] = ("fp32", precision)
    for each in dict.fromkeys(classes):
        with contextlib.suppress(RefusedError):  # no candidate of this class passed: the record says so
            choice = chosen(package, variants, tuning, each, threads=threads, fixed_threads=False)
            found.append(choice.candidate)
    return list(dict.fromkeys(found))


def _try(
    candidate: Candidate,
    reference: Candidate,
    original: Package,
    forms: dict[str, Package],
    pairs: int,
    seed: int,
    timeout: float,
    timed: Any,
) -> Trial:
    package, other = forms[candidate.digest], forms[reference.digest]
    row = tolerance_of(
        package.manifest.artifact.model_copy(update={"precision": candidate.precision}), _row(original)
    ).name
    order = Order(
        candidate=_side(candidate, package),
        tolerance=row,
        reference=_side(reference, other),
        pairs=pairs,
        seed=seed,
    )
    size = package.manifest.size + other.manifest.size
    policy = Policy(
        read=tuple({package.folder, other.folder}),
        # Weights three times (as they are, and packed for two sets of outputs), the record, the libraries.
        memory_bytes=6 * size + 6 * _GIB,
        file_bytes=0,
        open_files=256,
    )
    try:
        answer = run_confined(
            _CHILD,
            msgspec.to_builtins(order),
            policy,
            timeout=timeout,
            on_event=lambda event: timed() if "timed" in event else None,
        )
        found = _Found.model_validate(answer)
    except ValidationError as error:
        raise WorkerError(f"the answer of {_CHILD} is malformed: {error.errors()[0]['msg']}") from error
    except MlosError as error:
        if candidate == reference:
            raise
        why = "failed parity" if isinstance(error, ParityError) else "could not be computed"
        return Trial(candidate=candidate, verdict="refused", reason=f"{why}: {error.message}", tolerance=row)
    ratio = ratio_of(found.groups)
    verdict, reason = _judge(candidate, reference, ratio, len(found.groups) < pairs)
    shapes = [
        _Shape(name=name, single=single, batch=batch, length=length)
        for name, single, batch, length in found.shapes
    ]
    gains = _gains(shapes, found.groups)
    return Trial(
        candidate=candidate,
        verdict=verdict,
        reason=reason,
        tolerance=row,
        parity=found.measures,
        ratio=ratio,
        seconds=_seconds(shapes, [group.candidate for group in found.groups]),
        reference_seconds=_seconds(shapes, [group.reference for group in found.groups]),
        together=gains,
        batching=None if found.batched else _batching(shapes, gains),
        unbatched=found.batched,
    )


def _judge(candidate: Candidate, reference: Candidate, ratio: Ratio, given_up: bool) -> tuple[Any, str]:
    whose = "the default's time" if candidate.streams == 1 else f"the time of runs in a row by {reference}"
    against = f"{ratio} of {whose}, noise floor {ratio.floor:.1%}"
    if candidate == reference:
        return "default", f"the default against itself: {against}"
    if given_up:
        return "given up", f"at least {GIVE_UP:g} times {whose} in each of {ratio.n} groups"
    if ratio.faster:
        return "faster", against
    if ratio.likely_faster:
        return "likely faster", against
    return ("slower" if ratio.slower else "no difference found"), against


def _gains(shapes: Sequence[_Shape], found: Sequence[Group]) -> dict[str, Ratio]:
    """The time of each batch over that of its requests one by one, by what it is a batch of."""
    gains = {}
    for shape in shapes:
        if shape.batch == 1:
            continue
        logs, noise = [], []
        for group in found:
            alone, several = (
                statistics.fmean(map(math.log, group.candidate[name])) for name in (shape.single, shape.name)
            )
            logs.append(several - alone - math.log(shape.batch))
            one, other = group.candidate[shape.single]
            noise.append(math.log(one / other))
        gains[shape.single] = ratio_of_logs(logs, noise)
    return gains


def _batching(shapes: Sequence[_Shape], gains: dict[str, Ratio]) -> Batching | None:
    """Up to which length batches pay: at that one and at all shorter ones."""
    batched = [shape for shape in shapes if shape.single in gains and shape.batch > 1]
    worth = list(itertools.takewhile(lambda shape: gains[shape.single].likely_faster, batched))
    return Batching(most=BATCH, longest=worth[-1].length) if worth else None


def _seconds(shapes: Sequence[_Shape], sides: Sequence[dict[str, tuple[float, float]]]) -> Any:
    return {shape.name: [round(each, 7) for side in sides for each in side[shape.name]] for shape in shapes}


def _keep(candidate: Candidate, package: Package, home: Path, host: str) -> None:
    """Let an engine that compiles leave what a server will find, proved as it will be found.

    Where it cannot, or answers otherwise then, a server opens the package's file: that is slower, and as right.
    """
    if not compiles(engine_for(_first(package), candidate.engine)):
        return
    cache = compiled_folder(home, host, candidate)
    cache.mkdir(parents=True, exist_ok=True)
    order = Order(
        candidate=_side(candidate, package, cache), tolerance=tolerance_of_own(package, candidate.precision)
    )
    policy = Policy(
        read=(package.folder,),
        write=(cache,),
        memory_bytes=6 * package.manifest.size + 6 * _GIB,
        open_files=256,
    )
    try:
        run_confined(_CHILD, msgspec.to_builtins(order), policy, timeout=_TIMEOUT)
        why = None if any(cache.iterdir()) else "the engine could not write it"
    except MlosError as error:
        why = error.message
    if why is not None:
        shutil.rmtree(cache, ignore_errors=True)
        _log.warning("no compiled form of %s (%s) is kept: %s", package.name, candidate, why)


def tolerance_of_own(package: Package, precision: str) -> str:
    """The row that a package is held to when it is computed in ``precision``."""
    return tolerance_of(
        package.manifest.artifact.model_copy(update={"precision": precision}), _row(package)
    ).name


def _row(package: Package) -> str:
    """The row at full precision: the one that the package was held to."""
    return next((measure.tolerance for measure in package.manifest.parity), "fp32")


def _first(package: Package) -> Any:
    artifact = package.manifest.artifact
    return next(iter(artifact.parts.values()), artifact)


def _side(candidate: Candidate, package: Package, cache: Path | None = None) -> Side:
    return Side(
        folder=str(package.folder.absolute()),
        manifest=package.manifest.model_dump(mode="json"),
        engine=candidate.engine,
        precision=candidate.precision,
        threads=candidate.threads,
        streams=candidate.streams,
        cache=None if cache is None else str(cache.absolute()),
    )
