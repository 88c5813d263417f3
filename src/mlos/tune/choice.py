"""What a model is served with on this host, and why: by its record, or by default where there is none.

Nothing is chosen that was not proved. Without a record a model is served as it is packaged, by the default
engine; a precision that is not its own comes of a record, or of a variant that was proved when it was packaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mlos.engines import default_engine, installed
from mlos.errors import RefusedError
from mlos.store import Package
from mlos.tune.record import Batching, Candidate, Trial, Tuning, Verdict

Precision = Literal["fp32", "auto", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TAKEN: tuple[Verdict, ...] = ("faster", "likely faster")
"""What a candidate has to be found to take the default's place."""
OWN = "fp32"
"""The precision of a package that can be computed in others."""


@dataclass(frozen=True)
class Choice:
    """What to serve a model with: a candidate, why, and whether requests are computed together."""

    candidate: Candidate
    reason: str
    batching: Batching | None = None


def chosen(
    package: Package,
    variants: Sequence[Package],
    tuning: Tuning | None,
    precision: Precision,
    *,
    threads: int,
    fixed_threads: bool,
    untunable: str | None = None,
) -> Choice:
    """What to serve ``package`` with, where ``precision`` is asked for.

    ``variants`` are the installed packages that are other forms of it. ``threads`` are those of the default;
    with ``fixed_threads`` no candidate with another number is taken. ``untunable`` says why whoever would have
    tuned it could not.

    Raises:
        RefusedError: if a precision is forced in which the model was never proved; the hint holds the command.
    """
    own = package.manifest.artifact.precision
    default = Candidate(
        digest=package.digest,
        engine=default_engine(package.manifest.artifact),
        precision=own,
        threads=threads,
    )
    if own != OWN:
        precision = "fp32"  # a package of another precision is asked for by its name: it has no other classes
    doubted = doubt(package, tuning)
    if tuning is not None and doubted is None:
        known = {package.digest: package, **{each.digest: each for each in variants}}
        found = _best(
            tuning, own if precision == "fp32" else precision, known, threads if fixed_threads else None
        )
        if found is not None:
            reason, several = _reason(tuning, found, precision), _streamed(tuning, found.candidate)
            if several is None:
                return Choice(found.candidate, reason, found.batching)
            together = (
                f"{several.candidate.streams} runs at once take {several.ratio} of the time of as many in a row"
            )
            return Choice(several.candidate, f"{reason}; {together}", several.batching)
    why = doubted or f"the record holds nothing faster in {precision} with {threads} threads"
    if doubted is not None and untunable is not None:
        why = f"{doubted}; its first load could not tune it: {untunable}"
    if precision in ("fp32", "auto"):
        return Choice(default, f"the default engine: {why}")
    return Choice(_variant(package, variants, precision, threads, why), f"the variant in {precision}: {why}")


def _best(tuning: Tuning, precision: str, known: Mapping[str, Package], threads: int | None) -> Trial | None:
    """The fastest trial that may be taken; it need not be faster than the default where that one may not be."""
    present = installed()
    usable = [
        trial
        for trial in tuning.trials
        if trial.passed
        and trial.candidate.engine in present
        and trial.candidate.streams == 1
        and trial.candidate.digest in known
        and precision in ("auto", trial.candidate.precision)
        and threads in (None, trial.candidate.threads)
    ]
    forced = tuning.default not in usable
    taken = [trial for trial in usable if trial.ratio is not None and (forced or trial.verdict in TAKEN)]
    if taken:
        return min(taken, key=lambda trial: trial.ratio.ratio if trial.ratio is not None else 1.0)
    return tuning.default if tuning.default in usable else None


def _streamed(tuning: Tuning, best: Candidate) -> Trial | None:
    """In how many streams ``best`` computes most, if in more than one."""
    several = [
        (trial.ratio.ratio, number, trial)
        for number, trial in enumerate(tuning.trials)
        if trial.verdict in TAKEN
        and trial.ratio is not None
        and trial.candidate.streams > 1
        and trial.candidate.model_copy(update={"streams": 1}) == best
    ]
    return min(several)[-1] if several else None


def _reason(tuning: Tuning, trial: Trial, precision: Precision) -> str:
    when = f"tuned on this host at {tuning.tuned_at:%Y-%m-%d %H:%M} UTC"
    asked = (
        ""
        if precision in (tuning.precision, "fp32") or tuning.precision == "auto"
        else (f"; only {tuning.precision} was tuned (axon tune {tuning.model} --precision {precision})")
    )
    if trial is tuning.default:
        return f"{when}: no candidate was faster than the default{asked}"
    return (
        f"{when}: {trial.candidate} takes {trial.ratio} of the time of {tuning.default.candidate}, "
        f"parity {trial.tolerance} passed{asked}"
    )


def doubt(package: Package, tuning: Tuning | None) -> str | None:
    """Why no record of ``package`` is believed: there is none, or not any more. None where one is.

    An engine that is not installed any more is missed only where it was faster.
    """
    if tuning is None:
        return f"not tuned on this host (axon tune {package.name})"
    now = installed()
    missed = {trial.candidate.engine for trial in tuning.trials if trial.verdict in ("default", *TAKEN)}
    for engine, version in tuning.engines.items():
        if now.get(engine) != version and (engine in now or engine in missed):
            return (
                f"tuned with {engine} {version}, installed is {now.get(engine, 'none')} "
                f"(axon tune {tuning.model})"
            )
    return None


def _variant(
    package: Package, variants: Sequence[Package], precision: str, threads: int, why: str
) -> Candidate:
    for variant in variants:
        artifact = variant.manifest.artifact
        if artifact.precision == precision:
            return Candidate(
                digest=variant.digest, engine=default_engine(artifact), precision=precision, threads=threads
            )
    verb = "quantize" if precision == "int8" else "convert"
    raise RefusedError(
        f"{package.name} was never proved in {precision} on this host: {why}",
        field="precision",
        expected="a tuning record, or a variant, in this precision",
        got=precision,
        hint=f"axon tune {package.name} --precision {precision}, "
        f"or axon {verb} {package.name} --precision {precision}",
    )
